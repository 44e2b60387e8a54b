"""Sizes of a CLIP vision tower, as its checkpoints state them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from reca_fast.models.files.folder import REMEDY, read_object
from reca_fast.schema import Range, from_dict, shown

from .ranges import RGB, Epsilon, Heads, Layers, Side, Width


@dataclass(frozen=True)
class ClipVisionConfig:
    """Sizes of a CLIP vision tower. Fields are named and given as in the `vision_config` of public checkpoints.

    Raises:
        ValueError: the sizes contradict each other, or the activation is not CLIP's.
    """

    hidden_size: Width
    intermediate_size: Width
    """Width of the hidden layer of each MLP."""
    num_hidden_layers: Layers
    num_attention_heads: Heads
    image_size: Annotated[int, Range(1, 2**16)]
    """Side in pixels of the pictures that the tower takes; all are squares of this size."""
    patch_size: Side
    """Side of a patch in pixels; a patch becomes one feature vector."""
    num_channels: RGB = 3
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    select_layer: Annotated[int, Range(-256, -1)] = -2
    """The layer whose output is used, counted from the end: -1 is the last, -2 the one before. Later ones are not
    built.
    """

    def __post_init__(self) -> None:
        if self.hidden_act != "quick_gelu":
            raise ValueError(f"hidden_act is {shown(self.hidden_act)}; OpenAI's CLIP vision tower has quick_gelu")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is less than patch_size {self.patch_size}")
        if self.layers < 1:
            raise ValueError(f"select_layer {self.select_layer} leaves none of the {self.num_hidden_layers} layers")

    @property
    def layers(self) -> int:
        """How many layers are built: up to the selected one."""
        return self.num_hidden_layers + 1 + self.select_layer

    @property
    def num_patches(self) -> int:
        """Feature vectors of one picture."""
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def from_folder(cls, folder: Path) -> "ClipVisionConfig":
        """From the config.json of a CLIP folder, that of a whole CLIP or of a vision tower alone; the sizes of
        `CLIP_VIT_L_336` where the folder has none.

        Raises:
            UserError: the file is damaged, or a value in it is impossible.
        """
        path = folder / "config.json"
        if not path.exists():
            return CLIP_VIT_L_336
        values: dict[str, Any] = read_object(path)
        return from_dict(cls, values.get("vision_config", values), str(path), remedy=REMEDY)


CLIP_VIT_L_336 = ClipVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
)
"""openai/clip-vit-large-patch14-336: 576 feature vectors of 1024 numbers from a picture of 336 x 336 pixels."""
