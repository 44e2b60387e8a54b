"""SigLIP vision tower over a packed batch of pictures of any size (NaViT): transformers' encoder, our varlen
attention.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from reca_fast.kernels import Varlen, varlen_attention
from reca_fast.models.bagel.config import ViTConfig


def _packed_attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, segments, **_) -> tuple[Tensor, None]:
    """transformers' attention interface; q, k, v [1, heads, N, head_dim], the mask argument carries (Varlen,
    backend).
    """
    layout, backend = segments
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    return varlen_attention(q, k, v, layout, backend=backend).unsqueeze(0), None


AttentionInterface.register("reca_fast_varlen", _packed_attention)


class SiglipNaViT(nn.Module):
    """Patch tokens of many pictures -> features, no attention across pictures. Key names as in the public file."""

    def __init__(self, config: ViTConfig, num_layers: int) -> None:
        super().__init__()
        siglip: Any = SiglipVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=num_layers,
            num_attention_heads=config.num_attention_heads,
            num_channels=config.num_channels,
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_act=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps,
            attention_dropout=config.attention_dropout,
        )
        siglip._attn_implementation = "reca_fast_varlen"
        patch_dim = config.num_channels * config.patch_size**2
        self.patch_embedding = nn.Linear(patch_dim, config.hidden_size)
        self.position_embedding = nn.Embedding((config.image_size // config.patch_size) ** 2, config.hidden_size)
        self.encoder = SiglipEncoder(siglip)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches: Tensor, position_ids: Tensor, segments: Varlen, backend: str) -> Tensor:
        """patches [N, patch_dim], position_ids [N] (row * side + column) -> [N, hidden_size]."""
        hidden_states = self.patch_embedding(patches.to(self.patch_embedding.weight.dtype))
        hidden_states = hidden_states + self.position_embedding(position_ids)
        encoded = self.encoder(hidden_states.unsqueeze(0), attention_mask=(segments, backend)).last_hidden_state
        return self.post_layernorm(encoded[0])
