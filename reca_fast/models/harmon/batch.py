"""One pack as Harmon takes it: where its rows stand, its pictures or their latents, and a step's random numbers."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reca_fast.kernels import to_device
from reca_fast.sample import I2T

from .layout import DecoderPlan, EncoderPlan, LanguagePlan

LATENTS = "latents"
"""What a cache calls the latents of a picture."""


@dataclass(frozen=True)
class HarmonBatch:
    """One pack.

    Letters in shapes are those of `layout.py`; C numbers of a token's latents, R noisy copies of a predicted token.
    """

    encoder: EncoderPlan
    language: LanguagePlan
    decoder: DecoderPlan
    predicted: dict[str, int]  # task -> its predicted tokens, in the order of DecoderPlan.rows
    num_tokens: int  # of prompts, conditions and whole targets, whatever was drawn
    timesteps: Tensor  # int64 [R * Q]: all predicted tokens, then all of them again
    noise_seed: int  # the noise of row n in channel c is a function of (noise_seed, n, c)
    noise: Tensor | None = None  # [R * Q, C]: the noise itself, where it was recorded; noise_seed is not read then
    pictures: tuple[Tensor, ...] = ()  # uint8 [H, W, 3] each, or fp32 latents [tokens, C] of a cache; () once encoded
    latents: Tensor | None = None  # fp32 [T, C]; made by encode

    @property
    def counts(self) -> dict[str, int]:
        """Task -> number of tokens whose losses are summed. A predicted token counts once for each noisy copy."""
        tokens = sum(self.predicted.values())
        copies = len(self.timesteps) // tokens if tokens else 0
        said = {I2T: len(self.language.labels)} if len(self.language.labels) else {}
        return {task: copies * count for task, count in self.predicted.items()} | said

    def to(self, device: torch.device | str) -> "HarmonBatch":
        """The batch with every tensor on `device`. The host does not wait for the copies."""
        return replace(
            self,
            encoder=self.encoder.to(device),
            language=self.language.to(device),
            decoder=self.decoder.to(device),
            timesteps=to_device(self.timesteps, device),
            noise=None if self.noise is None else to_device(self.noise, device),
            pictures=tuple(to_device(picture, device) for picture in self.pictures),
            latents=None if self.latents is None else to_device(self.latents, device),
        )
