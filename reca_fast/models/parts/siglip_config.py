"""Sizes of a SigLIP vision tower, as its checkpoints state them."""

from dataclasses import dataclass
from typing import Annotated

from reca_fast.schema import Range, shown

from .ranges import RGB, Epsilon, Heads, Layers, Side, Width


@dataclass(frozen=True)
class SiglipConfig:
    """Sizes of a SigLIP vision tower. Fields are named and given as in the vit_config.json of public checkpoints.

    Raises:
        ValueError: the sizes contradict each other, or the activation is none of SigLIP's.
    """

    hidden_size: Width
    intermediate_size: Width
    """Width of the hidden layer of each MLP."""
    num_hidden_layers: Layers
    num_attention_heads: Heads
    image_size: Annotated[int, Range(1, 2**16)]
    """Side in pixels of the largest square that the position table covers."""
    patch_size: Side = 14
    """Side of a patch in pixels; a patch becomes one token."""
    num_channels: RGB = 3
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: Epsilon = 1e-6
    attention_dropout: Annotated[float, Range(at_least=0, below=1)] = 0.0
    """Stated in checkpoints and without effect here: the tower is never trained."""

    def __post_init__(self) -> None:
        if self.hidden_act != "gelu_pytorch_tanh":
            raise ValueError(f"hidden_act is {shown(self.hidden_act)}; a SigLIP vision tower has gelu_pytorch_tanh")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}"
            )

    @property
    def patch_features(self) -> int:
        """Numbers in one patch: the input width of the tower."""
        return self.num_channels * self.patch_size**2

    @property
    def side(self) -> int:
        """Side of the position table, in patches."""
        return self.image_size // self.patch_size
