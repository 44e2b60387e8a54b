"""The frozen VAE of one Harmon, and latents as rows of tokens."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from reca_fast.models.files.sharded import open_sharded
from reca_fast.models.parts.kl_vae import KLVAE, empty_kl_vae, fill_kl_vae, identity_of_kl_vae, picture_moments

from .batch import HarmonBatch
from .config import HarmonConfig
from .positions import Grid
from .weights import vae_place


class HarmonEncoders:
    """The VAE, without weights until `fill`.

    Args:
        config: sizes of the model.
    """

    def __init__(self, config: HarmonConfig) -> None:
        self.config = config
        self.vae: KLVAE | None = None

    def fill(self, folder: Path, weights: Path, device: torch.device | str) -> None:
        """Give the VAE its weights, in fp32: from the file of weights where it holds them, else from kl16.ckpt.

        Raises:
            UserError: there is no file of it, or the tensors are not the VAE's.
        """
        path, prefix = vae_place(folder, weights)
        with open_sharded(path) as stored:
            self.vae = fill_kl_vae(stored, self.config.vae, device, torch.float32, prefix)

    def identity(self, folder: Path, weights: Path) -> dict[str, str]:
        """What a cache depends on (see `reca_fast.models.protocol.Model.identity_of_encoders`), for the files that
        `fill` takes.
        """
        path, prefix = vae_place(folder, weights)
        with open_sharded(path) as stored:
            vae = identity_of_kl_vae(stored, self.config.vae, prefix)
        return {"VAE": vae, "patch size": str(self.config.mar.patch_size)}

    def fill_empty(self, device: torch.device | str) -> None:
        """Give the VAE weights that hold no particular numbers; no file is read."""
        self.vae = empty_kl_vae(self.config.vae, device)

    @staticmethod
    def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
        """The dtype in which the VAE computes. Its weights are fp32: a cache fits every run of one precision."""
        return torch.autocast(device.type, dtype) if dtype == torch.bfloat16 else nullcontext()

    @torch.no_grad()
    def encode(self, batch: HarmonBatch, dtype: torch.dtype) -> HarmonBatch:
        """The batch with latents in place of its pictures. Each picture is encoded alone, so that its latents do not
        depend on the pack that it is in.
        """
        if batch.latents is not None:
            return batch
        rows = [self.latents(picture, dtype) if picture.dtype == torch.uint8 else picture for picture in batch.pictures]
        nothing = torch.zeros(0, self.config.mar.token_dim, device=batch.timesteps.device)
        return replace(batch, latents=torch.cat(rows) if rows else nothing, pictures=())

    @torch.no_grad()
    def latents(self, picture: Tensor, dtype: torch.dtype) -> Tensor:
        """The latents of a picture, uint8 [H, W, 3] on the VAE's device: fp32 [tokens, C], row by row. They are the
        scaled means of the VAE's distribution; nothing is drawn.

        Raises:
            ValueError: the VAE has no weights yet.
        """
        if self.vae is None:
            raise ValueError("the VAE has no weights; fill_encoders() comes first")
        with self.autocast(dtype, picture.device):
            moments = picture_moments(self.vae, picture)
        return latent_tokens(self.vae.config.scale_factor * moments.chunk(2)[0], self.config.mar.patch_size)

    @torch.no_grad()
    def pictures(self, tokens: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
        """The picture of these latents [tokens, C]: fp32 [3, H, W], about in [-1, 1] (not clamped).

        Raises:
            ValueError: the VAE has no weights yet.
        """
        if self.vae is None:
            raise ValueError("the VAE has no weights; fill_encoders() comes first")
        with self.autocast(dtype, tokens.device):
            return self.vae.decode(latent_map(tokens, grid, self.config.mar.patch_size)[None])[0]


def latent_tokens(latents: Tensor, patch: int) -> Tensor:
    """Latents [z, h, w] -> [tokens, z * patch * patch], row by row; in a token channels come first, then the rows of
    its patch, then the columns.
    """
    cells = latents.unflatten(2, (-1, patch)).unflatten(1, (-1, patch))  # [z, rows, patch, columns, patch]
    rows: Tensor = cells.permute(1, 3, 0, 2, 4).flatten(2).flatten(0, 1)
    return rows


def latent_map(tokens: Tensor, grid: Grid, patch: int) -> Tensor:
    """The inverse of `latent_tokens`."""
    cells = tokens.unflatten(0, grid).unflatten(2, (-1, patch, patch))  # [rows, columns, z, patch, patch]
    latents: Tensor = cells.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    return latents
