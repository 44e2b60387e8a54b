"""The connector: a small transformer in which the query states of a sample see each other."""

import torch.nn.functional as F
from torch import Tensor, nn

from reca_fast.kernels import Varlen, varlen_attention
from reca_fast.models.parts.layer_norm import LayerNorm

from .config import ConnectorConfig


class ConnectorAttention(nn.Module):
    """Full attention within each sample, without positions."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_dim = width // config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, rows: Tensor, segments: Varlen, backend: str) -> Tensor:
        """[N, width] -> [N, width]."""
        q, k, v = (each(rows).unflatten(-1, (-1, self.head_dim)) for each in (self.q_proj, self.k_proj, self.v_proj))
        out: Tensor = self.out_proj(varlen_attention(q, k, v, segments, backend=backend).flatten(1))
        return out


class ConnectorMLP(nn.Module):
    """[N, width] -> [N, width], row by row; `memory.mlp_rows` may run it in chunks."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(rows), approximate="tanh"))
        return out


class ConnectorLayer(nn.Module):
    """Attention and MLP, each behind a norm."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = ConnectorAttention(config)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = ConnectorMLP(config)

    def forward(self, rows: Tensor, segments: Varlen, backend: str) -> Tensor:
        """The rows of all samples [N, width], and where each sample's begin -> [N, width]."""
        rows = rows + self.self_attn(self.layer_norm1(rows), segments, backend)
        out: Tensor = rows + self.mlp(self.layer_norm2(rows))
        return out
