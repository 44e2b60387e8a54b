"""BAGEL's two frozen encoders: the ViT that sees conditions and the VAE that encodes targets.

They stand beside the network, which reads nothing but their outputs. Where batches hold these outputs already, neither
is needed.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from reca_fast.kernels import blur_patchify
from reca_fast.models.files import fill, open_weights, uniform
from reca_fast.models.parts.kl_vae import KLVAE, encode_pictures, read_kl_vae
from reca_fast.models.parts.siglip import SiglipNaViT

from .batch import BagelBatch
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

    @torch.no_grad()
    def encode(self, batch: BagelBatch, attention: str) -> BagelBatch:
        """The batch with features and latents in place of its pictures. Features or latents that it has are kept.

        Args:
            batch: on the encoders' device.
            attention: attention backend, as `reca_fast.kernels.choose_backend` names it.
        """
        features, latents = batch.features, batch.latents
        if features is None and (patches := self.patches(batch)) is not None:
            features = self.vit(patches, batch.vit_position_ids, batch.vit_segments, attention)
        if latents is None and batch.targets:
            latents = self.latents(batch)
        return replace(batch, features=features, latents=latents, conditions=(), patches=None, targets=())

    def patches(self, batch: BagelBatch) -> Tensor | None:
        """What the ViT reads, [V, numbers of a patch]: the batch's conditions cut into patches in the ViT's dtype, or
        the patches that it holds; None where it has neither.
        """
        if not batch.conditions:
            return batch.patches
        sizes = [(int(image.shape[0]), int(image.shape[1])) for image in batch.conditions]
        dtype, patch_size = self.vit.patch_embedding.weight.dtype, self.config.vit.patch_size
        patches: Tensor = blur_patchify(
            batch.conditions, size=sizes, patch_size=patch_size, mean=0.5, std=0.5, dtype=dtype
        )
        return patches

    def latents(self, batch: BagelBatch) -> Tensor:
        """Latent tokens of the targets, fp32 [G, C], drawn from the VAE's distribution with the noise in the batch.

        Raises:
            ValueError: the VAE has no weights yet.
        """
        if self.vae is None:
            raise ValueError("the VAE has no weights; fill_encoders() comes first")
        assert batch.draws is not None, "a batch with targets holds its draws"
        latents = encode_pictures(self.vae, batch.targets, batch.draws.posterior)
        return torch.cat([patchify_latents(z, self.config.glue.latent_patch_size) for z in latents])
