"""Harmon's network: one MAR encoder for understanding and generation, a Qwen2 decoder, MAR's decoder and the denoiser.

The VAE (`encoders.py`) is frozen and no part of it. Letters in shapes are those of `layout.py`; D and Dd are the widths
of MAR's encoder and decoder, H that of the language model, C the numbers of a token's latents.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reca_fast.kernels import template_concat
from reca_fast.models.parts.qwen2 import Qwen2Decoder
from reca_fast.models.parts.qwen2_config import Qwen2Config

from .batch import HarmonBatch
from .config import HarmonConfig
from .denoiser import Denoiser
from .layout import DecoderPlan, EncoderPlan, LanguagePlan
from .mar import Mar


class Prediction(NamedTuple):
    """What the network says about a batch."""

    noise: Tensor  # [R * Q, 2 C]: of every noisy copy, its noise and where the variance lies
    said: Tensor  # [labels, H]: what the head turns into logits


class LanguageModel(Qwen2Decoder):
    """A Qwen2 with its token embedding, which is its head too."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)


class Harmon(nn.Module):
    """The network between the VAE's latents and the losses.

    Args:
        config: sizes.
        attention: attention backend, as `reca_fast.kernels.choose_backend` names it.
    """

    def __init__(self, config: HarmonConfig, *, attention: str = "sdpa") -> None:
        super().__init__()
        mar, hidden = config.mar, config.llm.hidden_size
        self.config, self.attention = config, attention
        self.llm = LanguageModel(config.llm)
        self.mar = Mar(mar)
        denoiser = Denoiser(mar.token_dim, mar.decoder_embed_dim, mar.diffloss_w, mar.diffloss_d)
        self.mar.diffloss = nn.ModuleDict({"net": denoiser})
        self.proj_in = nn.Sequential(nn.Linear(mar.encoder_embed_dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.proj_out = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, mar.encoder_embed_dim))

    @property
    def denoiser(self) -> Denoiser:
        """The denoising MLP."""
        net = self.mar.get_submodule("diffloss.net")
        assert isinstance(net, Denoiser)
        return net

    def blocks(self) -> list[nn.Module]:
        """All repeated blocks, in the order in which they run."""
        mar = self.mar
        return [*mar.encoder_blocks, *self.llm.layers, *mar.decoder_blocks, *self.denoiser.res_blocks]

    def stream_dtype(self) -> torch.dtype:
        """The dtype of the rows between blocks: that of the arithmetic."""
        weight = self.mar.fake_latent
        device = weight.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype

    def see(self, latents: Tensor, plan: EncoderPlan) -> Tensor:
        """All passes of the encoder: latents [T, C] -> [E, D]."""
        buffers, tokens = self.mar.embed(latents, plan.grids)
        sources = (
            buffers.repeat(plan.passes, 1),
            tokens[: plan.condition_tokens],
            tokens.index_select(0, plan.visible),
        )
        rows = torch.cat(sources).to(self.stream_dtype()).index_select(0, plan.order)
        return self.mar.encode(rows, plan.segments, self.attention)

    def slots(self, seen: Tensor, plan: EncoderPlan) -> Tensor:
        """What the language model gets of the encoder's rows: [E, D] -> [E, H]."""
        slots: Tensor = self.proj_in(seen)
        scaled: Tensor = ScaleGradient.apply(slots, plan.condition_rows, self.config.grad_scale)  # type: ignore[no-untyped-call]
        return scaled

    def read(self, slots: Tensor, plan: LanguagePlan) -> Tensor:
        """The language model's input, [S, H]: texts and slots in their rows."""
        rows: Tensor = template_concat(
            token_ids=plan.text_ids,
            embedding=self.llm.embed_tokens.weight,
            token_rows=plan.text_rows,
            visual=slots,
            visual_rows=plan.slot_rows,
            dtype=self.stream_dtype(),
        )
        return rows

    def draw(self, seen: Tensor, read: Tensor, plan: DecoderPlan) -> Tensor:
        """What the denoiser is conditioned on.

        Args:
            seen: [rows of masked passes, D], as the encoder gave them.
            read: [rows of masked passes, H], as the language model gave them.
            plan: of the decoder.

        Returns:
            z, [Q, Dd].
        """
        rows = self.mar.place(seen + self.proj_out(read), plan.hidden, plan.order, plan.grids)
        rows = self.mar.decode(rows.to(self.stream_dtype()), plan.segments, self.attention)
        return self.mar.finish(rows.index_select(0, plan.rows), plan.tokens, plan.grids)

    def forward(self, batch: HarmonBatch, latents: Tensor, x_t: Tensor) -> Prediction:
        """Predict the noise of every noisy copy, and what comes before every label.

        Args:
            batch: on this module's device.
            latents: [T, C], without noise.
            x_t: [R * Q, C], the noisy copies of the predicted tokens.
        """
        plan = batch.language
        seen = self.see(latents, batch.encoder)
        stream = self.llm.stream(self.read(self.slots(seen, batch.encoder), plan), plan.positions)
        asked, _ = self.llm(stream, plan.view, self.attention, asked=plan.asked, asked_view=plan.asked_view)
        masked = seen[batch.encoder.condition_rows :]
        z = self.draw(masked, asked.index_select(0, plan.seen), batch.decoder)
        return Prediction(self.denoiser(x_t, batch.timesteps, z), asked.index_select(0, plan.label_rows))


class ScaleGradient(torch.autograd.Function):
    """Rows as they are; on the way back the gradient of the first `rows` of them is multiplied by `factor`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: int, factor: float) -> Tensor:
        ctx.rows, ctx.factor = rows, factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return torch.cat((gradient[: ctx.rows] * ctx.factor, gradient[ctx.rows :])), None, None
