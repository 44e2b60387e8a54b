"""BAGEL's two frozen encoders: the ViT that sees conditions and the VAE that encodes targets.

They stand beside the network, which reads nothing but their outputs. Where batches hold these outputs already, neither
is needed.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from reca_fast.kernels import blur_patchify
from reca_fast.models.files import EmptyWeights, fill, open_weights, uniform
from reca_fast.models.files.identity import identity_of_tensors
from reca_fast.models.parts.kl_vae import (
    KLVAE,
    draw_latents,
    empty_kl_vae,
    identity_of_kl_vae,
    picture_moments,
    read_kl_vae,
)
from reca_fast.models.parts.siglip import SiglipNaViT

from .batch import BagelBatch
from .collate import grid_positions
from .config import BagelConfig
from .latent_tokens import patchify_latents
from .names import VIT_NAMES

VAE_FILE = "ae.safetensors"
"""The VAE's file in a checkpoint folder. The ViT has none of its own: its weights are in the file of all others."""


class BagelEncoders:
    """Both encoders. Until they are filled, `vit` is on the meta device and `vae` is None.

    Args:
        config: sizes of the model.
    """

    def __init__(self, config: BagelConfig) -> None:
        self.config = config
        with torch.device("meta"):
            self.vit = SiglipNaViT(config.vit, config.vit_layers).requires_grad_(False)
        self.vae: KLVAE | None = None

    def fill_vit(self, weights: Path, dtype: torch.dtype, device: torch.device | str) -> None:
        """Give the ViT its weights from the file of weights of a checkpoint.

        Raises:
            UserError: the file is missing or damaged, or its tensors are not the ViT's.
        """
        with open_weights(weights) as stored:
            fill(self.vit, stored, uniform(dtype, device), VIT_NAMES)

    def fill_vae(self, folder: Path, device: torch.device | str) -> None:
        """Give the VAE its weights, in fp32, from VAE_FILE of a checkpoint folder.

        Raises:
            UserError: the file is missing or damaged, or its tensors are not the VAE's.
        """
        self.vae = read_kl_vae(folder / VAE_FILE, self.config.vae, device=device)

    def identity(self, folder: Path, weights: Path) -> dict[str, str]:
        """What a cache depends on, by encoder (see `reca_fast.models.protocol.Model.identity_of_encoders`).

        Args:
            folder: the checkpoint.
            weights: its file of weights, which holds the ViT.
        """
        glue, config = self.config.glue, self.config
        names = {name: VIT_NAMES.key(name) for name in self.vit.state_dict()}
        with open_weights(weights) as stored:
            vit = identity_of_tensors(stored, names, config.vit, config.vit_layers, glue.vit_max_num_patch_per_side)
        with open_weights(folder / VAE_FILE) as stored:
            return {"vision tower": vit, "VAE": identity_of_kl_vae(stored, config.vae)}

    def autocast(self, dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
        """The context in which both encoders compute: bf16 wherever the model's arithmetic is, whatever the dtype in
        which its trained weights are kept. So a cache fits every run of the same precision.
        """
        return torch.autocast(device.type, dtype) if dtype == torch.bfloat16 else nullcontext()

    def fill_empty(self, dtype: torch.dtype, device: torch.device | str) -> None:
        """Give both encoders weights that hold no particular numbers; no file is read."""
        fill(self.vit, EmptyWeights(self.vit), uniform(dtype, device))
        self.vae = empty_kl_vae(self.config.vae, device)

    @torch.no_grad()
    def encode(self, batch: BagelBatch, dtype: torch.dtype, attention: str) -> BagelBatch:
        """The batch with features and latents in place of its pictures or moments. Those that it has are kept.

        Args:
            batch: on the encoders' device.
            dtype: of the model's arithmetic.
            attention: attention backend, as `reca_fast.kernels.choose_backend` names it.
        """
        features, latents, clean = batch.features, batch.latents, batch.condition_latents
        for_vae = (*batch.targets, *batch.latent_conditions)
        with self.autocast(dtype, batch.und_rows.device):
            if features is None and batch.patches is not None:
                features = self.vit(batch.patches, batch.vit_position_ids, batch.vit_segments, attention)
            elif features is None and batch.conditions:
                features = torch.cat([self.features(picture, attention) for picture in batch.conditions])
            if latents is None and clean is None and (batch.moments or for_vae):
                moments = batch.moments or tuple(self.moments(picture) for picture in for_vae)
                tokens = self._latent_tokens(moments, None if batch.draws is None else batch.draws.posterior)
                targets = len(batch.latent_shapes)
                latents = torch.cat(tokens[:targets]) if targets else None
                clean = torch.cat(tokens[targets:]) if batch.clean is not None else None
        made = replace(batch, features=features, latents=latents, condition_latents=clean)
        return replace(made, conditions=(), latent_conditions=(), patches=None, targets=(), moments=())

    def _latent_tokens(self, moments: Sequence[Tensor], posterior: Sequence[Tensor] | None) -> list[Tensor]:
        """Latent tokens drawn from distributions [2z, h, w] with standard normal numbers; their means without any."""
        normal = posterior if posterior is not None else [m.new_zeros(m.chunk(2)[0].shape) for m in moments]
        drawn = [draw_latents(self.config.vae, m, x) for m, x in zip(moments, normal, strict=True)]
        return [patchify_latents(z, self.config.glue.latent_patch_size) for z in drawn]

    def features(self, picture: Tensor, attention: str) -> Tensor:
        """What the ViT makes of one condition, uint8 [H, W, 3] on its device: [patches, width of the ViT].

        A condition is encoded alone, so that its features do not depend on the pack that it is in.
        """
        height, width, _ = picture.shape
        patch, side = self.config.vit.patch_size, self.config.glue.vit_max_num_patch_per_side
        dtype = self.vit.patch_embedding.weight.dtype
        patches: Tensor = blur_patchify(
            [picture], size=[(height, width)], patch_size=patch, mean=0.5, std=0.5, dtype=dtype
        )
        positions = grid_positions(height // patch, width // patch, side, patches.device)
        return self.vit.alone(patches, positions, attention)

    def moments(self, picture: Tensor) -> Tensor:
        """The distribution that the VAE gives for one target, uint8 [H, W, 3]: fp32 [2z, h, w].

        Raises:
            ValueError: the VAE has no weights yet.
        """
        if self.vae is None:
            raise ValueError("the VAE has no weights; fill_encoders() comes first")
        return picture_moments(self.vae, picture)
