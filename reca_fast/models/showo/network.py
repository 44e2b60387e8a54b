"""Show-o's network: embeddings, the layers of Phi, and the rows that predict something.

It reads what the frozen encoders (`encoders.py`) made of the pictures; they are no part of it. Letters in shapes are
those of `batch.py`, and D is the width of the language model.
"""

import torch
from torch import Tensor, nn

from reca_fast.kernels import template_concat
from reca_fast.models.parts.rotary import rotary_table

from .batch import ShowoBatch
from .config import ShowoConfig
from .layers import PhiLayer


class Showo(nn.Module):
    """The network between the frozen encoders and the head.

    Args:
        config: sizes of the model.
        vector_width: width of CLIP's vectors; None where the checkpoint has no CLIP.
        attention: attention backend, as `reca_fast.kernels.choose_backend` names it.
    """

    def __init__(self, config: ShowoConfig, vector_width: int | None, *, attention: str = "sdpa") -> None:
        super().__init__()
        phi = config.phi
        self.config, self.vector_width, self.attention = config, vector_width, attention
        self.stops_gradient = True
        """Whether the embeddings of detached rows get no gradient; off only to compare with the other choice."""
        self.embed_tokens = nn.Embedding(config.vocab_size, phi.hidden_size)
        self.layers = nn.ModuleList(PhiLayer(phi) for _ in range(phi.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(phi.hidden_size, phi.layer_norm_eps)
        self.lm_head = nn.Linear(phi.hidden_size, config.vocab_size)
        self.mm_projector: nn.Sequential | None = None
        if vector_width is not None:
            width = phi.hidden_size
            self.mm_projector = nn.Sequential(nn.Linear(vector_width, width), nn.GELU(), nn.Linear(width, width))

    def embed(self, batch: ShowoBatch, seen: Tensor) -> Tensor:
        """The rows before the first layer, [S, D], in the dtype of the embedding.

        Args:
            batch: encoded, on this module's device.
            seen: int64 [C], the targets' codes as the model sees them: `codebook_size` where one is masked.
        """
        first, given = self.config.first_code, batch.text_ids[:0] if batch.given is None else batch.given
        weight = self.embed_tokens.weight
        vectors, vector_rows = None, None
        if self.mm_projector is not None:  # without a condition as well: it takes part in every batch
            if batch.vectors is None and len(batch.vector_rows):
                raise ValueError("the batch is not encoded; encode() comes first")
            features = weight.new_zeros(0, self.vector_width or 0) if batch.vectors is None else batch.vectors
            # In the dtype of the weights, outside of autocast, like the token embeddings.
            with torch.autocast(weight.device.type, enabled=False):
                vectors = self.mm_projector(features.to(weight.dtype))
            vector_rows = batch.vector_rows
        rows: Tensor = template_concat(
            token_ids=torch.cat((batch.text_ids, given + first, seen + first)),
            embedding=weight,
            token_rows=torch.cat((batch.text_rows, batch.given_rows, batch.target_rows)),
            visual=vectors,
            visual_rows=vector_rows,
            length=batch.num_tokens,
            dtype=weight.dtype,
        )
        if batch.detached is not None and self.stops_gradient:
            rows = torch.where(batch.detached[:, None], rows.detach(), rows)
        return rows

    def decode(self, rows: Tensor, batch: ShowoBatch) -> Tensor:
        """[S, D] through all layers, before the final norm."""
        phi = self.config.phi
        wide = torch.promote_types(rows.dtype, torch.float32)
        cos, sin = (table[:, None] for table in rotary_table(batch.positions, phi.rotary_dim, phi.rope_theta, wide))
        for layer in self.layers:
            rows = layer(rows, cos, sin, batch.plan, self.attention)
        return rows

    def forward(self, batch: ShowoBatch, seen: Tensor, wanted: Tensor) -> Tensor:
        """What the head reads of these rows, [len(wanted), D].

        Args:
            batch, seen: see `embed`.
            wanted: int64, sorted rows.
        """
        rows = self.decode(self.embed(batch, seen), batch).index_select(0, wanted)
        out: Tensor = self.final_layernorm(rows)
        return out
