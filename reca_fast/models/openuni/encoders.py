"""OpenUni's frozen encoders: InternVL's vision tower, which reads conditions, and the DC-AE, which encodes targets.

They stand beside the network. Where batches hold what they made, neither is needed; the DC-AE's decoder is read when a
picture is drawn for the first time.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from reca_fast.models.files import EmptyWeights, Weights, fill, uniform
from reca_fast.models.files.identity import identity_of_tensors

from .batch import OpenUniBatch, to_cells
from .config import OpenUniConfig
from .dcae import DECODER_NAMES, ENCODER_NAMES, decode, empty_half, encode, in_channels_last, to_pixels
from .names import VIT_NAMES
from .vit import InternVit

DECODED = 2**18
"""Pixels that are decoded at once, or else one picture: the insides of the decoder are by far the largest tensors of
drawing, and only small pictures gain from company.
"""


class OpenUniEncoders:
    """Both encoders, with weights in the dtype of the model's arithmetic. Until they are filled, `vit` is on the meta
    device and `vae` is None.

    Args:
        config: sizes of the model.
    """

    def __init__(self, config: OpenUniConfig) -> None:
        self.config = config
        with torch.device("meta"):
            self.vit = InternVit(config).requires_grad_(False).eval()
        self.vae: nn.Module | None = None
        self.decoder: nn.Module | None = None
        self.dtype = torch.float32

    def fill(self, weights: Weights, dtype: torch.dtype, device: torch.device | str) -> None:
        """Give both encoders their weights.

        Raises:
            UserError: tensors are missing, unexpected or misshapen.
        """
        fill(self.vit, weights, uniform(dtype, device), VIT_NAMES)
        vae = empty_half(self.config.vae, "encoder")
        fill(vae, weights, uniform(dtype, device), ENCODER_NAMES)
        self.vae, self.dtype = in_channels_last(vae), dtype

    def identity(self, weights: Weights) -> dict[str, str]:
        """What a cache depends on, by encoder (see `reca_fast.models.protocol.Model.identity_of_encoders`)."""
        config, names = self.config, {name: VIT_NAMES.key(name) for name in self.vit.state_dict()}
        vae = {key: key for key in weights.shapes if ENCODER_NAMES.has(key)}
        tower = identity_of_tensors(weights, names, config.vit, config.joined, config.ps_version, config.select_layer)
        return {"vision tower": tower, "VAE": identity_of_tensors(weights, vae, config.vae)}

    def fill_decoder(self, weights: Weights, device: torch.device | str) -> None:
        """Give the DC-AE's decoder its weights. Raises UserError like `fill`."""
        decoder = empty_half(self.config.vae, "decoder")
        fill(decoder, weights, uniform(self.dtype, device), DECODER_NAMES)
        self.decoder = in_channels_last(decoder)

    def fill_empty(self, dtype: torch.dtype, device: torch.device | str) -> None:
        """Give both encoders weights that hold no particular numbers; no file is read."""
        fill(self.vit, EmptyWeights(self.vit), uniform(dtype, device))
        vae = empty_half(self.config.vae, "encoder")
        fill(vae, EmptyWeights(vae), uniform(dtype, device))
        self.vae, self.dtype = in_channels_last(vae), dtype

    @torch.no_grad()
    def encode(self, batch: OpenUniBatch, attention: str) -> OpenUniBatch:
        """The batch with features and latents in place of its pictures. Those that it has are kept.

        Args:
            batch: on the encoders' device.
            attention: attention backend, as `reca_fast.kernels.choose_backend` names it.
        """
        features, latents = batch.features, batch.latents
        if features is None and batch.conditions:
            features = torch.cat([self.features(picture, attention) for picture in batch.conditions])
        if latents is None and batch.targets:
            latents = torch.cat([to_cells(self.latents(picture)) for picture in batch.targets])
        return replace(batch, features=features, latents=latents, conditions=(), targets=())

    def features(self, picture: Tensor, attention: str) -> Tensor:
        """What the vision tower makes of one picture: [picture_tokens, width of the language model].

        Pictures are encoded one by one, so that what comes of them does not depend on the pack that they are in.

        Args:
            picture: uint8 [H, W, 3], or fp32 [3, H, W] in [-1, 1].
        """
        tokens: Tensor = self.vit(to_pixels(picture), attention)
        return tokens

    def latents(self, picture: Tensor) -> Tensor:
        """The scaled latents of one target, given likewise: fp32 [C, H / stride, W / stride].

        Raises:
            ValueError: the encoder has no weights yet.
        """
        return encode(_filled(self.vae), self.config.vae, picture, self.dtype)

    def pictures(self, latents: Tensor) -> Tensor:
        """The pictures uint8 [pictures, H, W, 3] of scaled latents [pictures, C, h, w].

        Raises:
            ValueError: the decoder has no weights yet.
        """
        decoder, stride = _filled(self.decoder), self.config.stride
        parts = latents.split(max(1, DECODED // (latents.shape[2] * latents.shape[3] * stride**2)))
        return torch.cat([decode(decoder, self.config.vae, part, self.dtype) for part in parts])


def _filled(module: nn.Module | None) -> Callable[[Tensor], Tensor]:
    if module is None:
        raise ValueError("the DC-AE has no weights; fill_encoders() comes first")
    return module
