"""One layer of Phi as Show-o has it: attention and MLP side by side, both reading the same normalised rows."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca_fast.kernels import varlen_attention
from reca_fast.models.parts.layer_norm import WideLayerNorm

from .config import PhiConfig
from .layout import AttentionPlan


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first numbers of every head by position, half-split: number j with number j + half.

    Args:
        x: [S, H, head_dim].
        cos, sin: [S, 1, R], R <= head_dim; numbers behind R are left as they are.
    """
    part, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    u, v = part.chunk(2, dim=-1)
    return torch.cat((torch.addcmul(part * cos, torch.cat((-v, u), dim=-1), sin), rest), dim=-1)


class PhiMLP(nn.Module):
    """Two linear layers around the tanh form of GELU."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, h: Tensor) -> Tensor:
        """[N, D] -> [N, D], row by row; `memory.mlp_rows` may run it in chunks."""
        out: Tensor = self.fc2(F.gelu(self.fc1(h), approximate="tanh"))
        return out


class PhiLayer(nn.Module):
    """Decoder layer: x + dense(attention(LN x)) + mlp(LN x), with a LayerNorm on each head of queries and keys."""

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        width, self.head_dim = config.hidden_size, config.head_dim
        self.input_layernorm = nn.LayerNorm(width, config.layer_norm_eps)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_layernorm = WideLayerNorm(self.head_dim, config.layer_norm_eps)
        self.k_layernorm = WideLayerNorm(self.head_dim, config.layer_norm_eps)
        self.dense = nn.Linear(width, width)
        self.mlp = PhiMLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, plan: AttentionPlan, backend: str) -> Tensor:
        """Run the layer on the S rows of a pack.

        Args:
            x: [S, D], the residual stream.
            cos, sin: [S, 1, R], of the rotation by position.
            plan: which rows attend to which.
            backend: attention backend, as `reca_fast.kernels.choose_backend` names it.
        """
        h = narrowed(self.input_layernorm(x))
        q, k, v = (proj(h).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q = turned(self.q_layernorm(q), cos, sin).to(v.dtype)
        k = turned(self.k_layernorm(k), cos, sin).to(v.dtype)
        full, causal = q.tensor_split((plan.num_full,))
        seen = [
            varlen_attention(rows, k.index_select(0, keys), v.index_select(0, keys), segments, backend=backend)
            for rows, segments, keys in ((full, plan.full, plan.full_keys), (causal, plan.causal, plan.causal_keys))
            if segments is not None and keys is not None
        ]
        attended = self.dense(torch.cat(seen).flatten(1))
        # The sum goes into the product's own memory; the residual stream stays as wide as it is.
        out: Tensor = x + attended.add_(self.mlp(h))
        return out


def narrowed(h: Tensor) -> Tensor:
    """Under autocast the rows in its dtype, cast once for all linear layers that read them."""
    device = h.device.type
    return h.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else h
