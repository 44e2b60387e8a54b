"""transformers' decoder layers with this project's operations in place: packed attention, fused norms and SwiGLU.

The layers stay transformers' own classes, and their parameters keep their names. A pack's tokens come to them as a
batch of T texts of one token each, [T, 1, D]: whatever goes token by token (all but attention) is right as it is, and
attention, which transformers lets others supply, is told by `segments` which tokens belong together. So nothing is
padded, no mask is made, and what acts row by row (`memory.mlp_rows`) finds rows.
"""

from typing import Any

from torch import Tensor, nn

from reca_fast.kernels import Varlen, swiglu, varlen_attention
from reca_fast.models.parts.rms_norm import RMSNorm

PACKED = "reca_fast_packed"
"""The name under which transformers finds `packed_attention`."""
WINDOWED = "reca_fast_flash"
"""The name of `tower_attention`. To a name with flash in it, transformers' towers tell where windows begin."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Varlen,
    backend: str,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention in transformers' form, inside the segments of a pack.

    Args:
        module: the layer's attention, unused.
        query: [T, H, 1, head_dim].
        key, value: [T, Hkv, 1, head_dim].
        attention_mask: unused: `segments` says all.
        segments: of the T tokens.
        backend: as `reca_fast.kernels.choose_backend` names it.
        rest: what other kinds of attention need.

    Returns:
        [T, 1, H, head_dim], and no weights.
    """
    q, k, v = (x.squeeze(2) for x in (query, key, value))
    attended: Tensor = varlen_attention(q.to(v.dtype), k.to(v.dtype), v, segments, backend=backend)
    return attended.unsqueeze(1), None


def tower_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    backend: str,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **rest: Any,
) -> tuple[Tensor, None]:
    """The same for a tower whose attention has segments: one call for all windows of a picture.

    Args:
        query, key, value: [1, H, T, head_dim].
        cu_seq_lens_q: int32, where each window begins, then T; None under transformers 4, which calls for each window.
        max_length_q: patches of the largest window.

    Returns:
        [1, T, H, head_dim], and no weights.
    """
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    segments = Varlen.from_lengths([len(q)], [len(q)], causal=False).to(q.device)
    if cu_seq_lens_q is not None:
        segments = Varlen(cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, causal=False)
    attended: Tensor = varlen_attention(q.to(v.dtype), k.to(v.dtype), v, segments, backend=backend)
    return attended[None], None


class GatedMLP(nn.Module):
    """The projections of transformers' MLP around the fused SwiGLU."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj: nn.Linear = mlp.gate_proj
        self.up_proj: nn.Linear = mlp.up_proj
        self.down_proj: nn.Linear = mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        out: Tensor = self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x), reuse_inputs=True))
        return out


def make_fast(layers: nn.ModuleList, norm: nn.Module, activation: str) -> nn.Module:
    """Put the fused operations into decoder layers, in place.

    Args:
        layers: built by transformers.
        norm: the norm behind the last layer.
        activation: of the MLP; the fused one is for silu.

    Returns:
        What takes the place of `norm`.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention)
    ALL_ATTENTION_FUNCTIONS.register(WINDOWED, tower_attention)
    for layer in layers:
        if activation == "silu":
            layer.mlp = GatedMLP(layer.mlp)
        for part in list(layer.modules()):
            for name, child in list(part.named_children()):
                if type(child).__name__.endswith("RMSNorm"):
                    setattr(part, name, _fused(child))
    return _fused(norm)


def _fused(norm: Any) -> RMSNorm:
    fused = RMSNorm(norm.weight.numel(), norm.variance_epsilon)
    fused.weight = norm.weight
    return fused
