"""Arguments of `template_concat` that travel together."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Maybe = Tensor | None


class Sources(NamedTuple):
    """Where the packed rows come from; `template_concat` says what each tensor is. None where it is absent."""

    token_ids: Maybe = None
    embedding: Maybe = None
    token_rows: Maybe = None
    visual: Maybe = None
    visual_rows: Maybe = None
    visual_position_ids: Maybe = None
    visual_position_embedding: Maybe = None
    latents: Maybe = None
    latent_rows: Maybe = None
    latent_position_ids: Maybe = None
    latent_position_embedding: Maybe = None
    timestep_embedding: Maybe = None
    latent_cu_seqlens: Maybe = None

    def first(self) -> Tensor:
        """The first tensor [rows, D] of a source that is there: its device and its D are those of all."""
        return next(x for x in (self.embedding, self.visual, self.latents) if x is not None)

    def counts(self) -> list[int]:
        """Rows of text, of visual embeddings and of latents."""
        return [0 if x is None else x.shape[0] for x in (self.token_ids, self.visual, self.latents)]

    def rows(self) -> dict[str, Maybe]:
        """By name, the packed rows of every source."""
        return {"token_rows": self.token_rows, "visual_rows": self.visual_rows, "latent_rows": self.latent_rows}


class Places(NamedTuple):
    """Where in the packed sequence the rows of visual embeddings and latents are."""

    visual_rows: Maybe
    """[Nv], or None where they lie together (see `starts`)."""
    latent_rows: Maybe
    """[G], or None where they lie together (see `starts`)."""
    latent_cu_seqlens: Maybe
    """[M + 1], first latent of each picture, then G; None for one picture."""
    starts: Sequence[int]
    """First row of the visual embeddings, first row of the latents, and the end, where no rows are given. Their
    differences are the numbers of rows in any case."""

    def pictures(self) -> int:
        """Their number, M."""
        return 1 if self.latent_cu_seqlens is None else self.latent_cu_seqlens.shape[0] - 1


class Wanted(NamedTuple):
    """The dtype of each gradient, or None where it is not wanted."""

    visual: torch.dtype | None
    latents: torch.dtype | None
    timesteps: torch.dtype | None
