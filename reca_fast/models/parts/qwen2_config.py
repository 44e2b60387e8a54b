"""Sizes of a Qwen2 (or Qwen2.5) language model, as its checkpoints state them."""

from dataclasses import dataclass
from typing import Annotated, Any

from reca_fast.schema import Range, shown

from .ranges import Epsilon, Heads, Layers, Width


@dataclass(frozen=True)
class Qwen2Config:
    """Sizes of a Qwen2 under the names of its config.json.

    Raises:
        ValueError: the sizes contradict each other, or the activation, the window or the scaling of positions is one
            that is not computed here.
    """

    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads
    vocab_size: Annotated[int, Range(1, 2**22)]
    rope_theta: Annotated[float, Range(above=0, at_most=1e12)] = 1_000_000.0
    rms_norm_eps: Epsilon = 1e-6
    hidden_act: str = "silu"
    use_sliding_window: bool = False
    rope_scaling: dict[str, Any] | None = None
    """Only a scaling that begins beyond `max_position_embeddings` ("dynamic") is understood: no pack is that long."""

    @property
    def head_dim(self) -> int:
        """Numbers in one attention head."""
        return self.hidden_size // self.num_attention_heads

    def __post_init__(self) -> None:
        if self.hidden_act != "silu" or self.use_sliding_window:
            raise ValueError(
                "it describes another model: a Qwen2 here has hidden_act=silu and use_sliding_window=false, not "
                f"{shown(self.hidden_act)} and {self.use_sliding_window}"
            )
        scaling = self.rope_scaling or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ("default", "dynamic"):
            raise ValueError(f"rope_scaling is {shown(self.rope_scaling)}; only plain positions are computed here")
        if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no even multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
