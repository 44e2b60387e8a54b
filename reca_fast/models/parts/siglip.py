"""A SigLIP vision tower that reads many pictures of any sizes at once (packed, or NaViT, form).

The patches of all pictures lie behind one another in one tensor, without padding; attention stays within a picture. The
network is transformers' SigLIP encoder, its attention is `reca_fast.kernels.varlen_attention`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from reca_fast.kernels import Varlen, varlen_attention
from reca_fast.models.files import NameTable

from .lean_import import lean_import
from .siglip_config import SiglipConfig

with lean_import():
    from transformers import AttentionInterface, SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipEncoder

SIGLIP_NAMES = NameTable(
    (
        ("{part:patch_embedding|position_embedding}.{kind}", "vision_model.embeddings.{part}.{kind}"),
        ("encoder.*", "vision_model.encoder.*"),
        ("post_layernorm.{kind}", "vision_model.post_layernorm.{kind}"),
    ),
    under="vision_model.",
)
"""Names in checkpoints of transformers' SigLIP (see `NameTable.within` for a tower inside a larger file)."""


def _packed_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, packed: tuple[Varlen, str], **_: Any
) -> tuple[Tensor, None]:
    """Attention in the form that transformers calls: q, k, v are [1, heads, N, head_dim].

    `packed` stands where transformers hands a mask through to here: the pictures' segments and the attention backend.
    """
    segments, backend = packed
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    return varlen_attention(q, k, v, segments, backend=backend).unsqueeze(0), None


AttentionInterface.register("reca_fast_varlen", _packed_attention)


class SiglipNaViT(nn.Module):
    """The tower from patches to features, without a pooling head.

    Args:
        config: the sizes.
        num_layers: how many layers are built; None takes all that `config` states.
    """

    def __init__(self, config: SiglipConfig, num_layers: int | None = None) -> None:
        super().__init__()
        siglip: Any = SiglipVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers if num_layers is None else num_layers,
            num_attention_heads=config.num_attention_heads,
            num_channels=config.num_channels,
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_act=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps,
            attention_dropout=config.attention_dropout,
        )
        siglip._attn_implementation = "reca_fast_varlen"
        self.patch_embedding = nn.Linear(config.patch_features, config.hidden_size)
        self.position_embedding = nn.Embedding(config.side**2, config.hidden_size)
        self.encoder = SiglipEncoder(siglip)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches: Tensor, position_ids: Tensor, segments: Varlen, backend: str) -> Tensor:
        """Features of the patches of a pack of pictures.

        Args:
            patches: [N, 3 * patch_size**2], the pixels of each patch in the order (row, column, colour), in [-1, 1].
            position_ids: int64 [N], row * side + column of each patch in its picture, side being that of the table.
            segments: where each picture begins and ends among the N patches.
            backend: of the attention, from `reca_fast.kernels.choose_backend`.

        Returns:
            [N, hidden_size], in the dtype of the weights.
        """
        hidden_states = self.patch_embedding(patches.to(self.patch_embedding.weight.dtype))
        hidden_states = hidden_states + self.position_embedding(position_ids)
        encoded = self.encoder(hidden_states.unsqueeze(0), attention_mask=(segments, backend)).last_hidden_state
        features: Tensor = self.post_layernorm(encoded[0])
        return features

    def alone(self, patches: Tensor, position_ids: Tensor, backend: str) -> Tensor:
        """Features of one picture. They are the same bits whatever other pictures there are, which those of a pack need
        not be: a matrix product rounds as its number of rows suggests.
        """
        rows = len(patches)
        ends = torch.arange(2, dtype=torch.int32, device=patches.device) * rows  # made where it is used: nothing waits
        features: Tensor = self(patches, position_ids, Varlen(ends, ends, rows, rows, False), backend)
        return features
