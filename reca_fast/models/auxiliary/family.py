"""How each kind of VLM sees a picture: its size, its grid of tokens, how its tower is fed, where its tokens stand.

A family is told by `architectures` in config.json. All that is the same for all of them is elsewhere in this folder.
"""

from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from reca_fast.config import ResizeConfig
from reca_fast.data.images import fitted_size
from reca_fast.data.inputs import Size
from reca_fast.errors import UserError
from reca_fast.kernels import to_device

Grid = tuple[int, int]
"""Rows and columns of a picture's tokens in the language model."""

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of red, green and blue from 0 to 1, with which towers were trained."""


class Family:
    """One kind of VLM under one configuration.

    Args:
        config: transformers' configuration of the whole VLM.
    """

    CLASS: ClassVar[str]
    """transformers' class."""
    PROJECTOR: ClassVar[str]
    """Where the projector is in that class's `model`."""
    TOWER: ClassVar[str]
    """Where the vision tower is."""
    COLOURS: ClassVar[tuple[tuple[float, ...], tuple[float, ...]]]
    """Mean and deviation of the tower's input, where the checkpoint states none."""
    WINDOWS: ClassVar[bool] = False
    """Whether the tower's attention has segments, which `fast.tower_attention` computes in one call."""
    MARKS: ClassVar[tuple[str, str]] = ("", "")
    """Tokens before and after a picture that the chat template leaves to the processor."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def image_token(self) -> int:
        """The id that stands for each token of a picture."""
        return int(self.config.image_token_id)

    @property
    def pixels_per_token(self) -> int:
        """Side in pixels of the square that one token covers."""
        raise NotImplementedError

    @property
    def patches_of_token(self) -> int:
        """How many patches of the tower make one token."""
        patch = self.config.vision_config.patch_size
        side = self.pixels_per_token // int(patch[0] if isinstance(patch, (list, tuple)) else patch)
        return side * side

    def check(self, rule: ResizeConfig) -> None:
        """Refuse sizes of conditions that the tower cannot take.

        Raises:
            UserError: naming the setting.
        """
        raise NotImplementedError

    def condition_size(self, size: Size, rule: ResizeConfig) -> Size:
        """Width and height to which a picture is resized for the tower."""
        raise NotImplementedError

    def grid(self, size: Size) -> Grid:
        """Rows and columns of tokens of a picture of this size for the tower."""
        return size[1] // self.pixels_per_token, size[0] // self.pixels_per_token

    def tower_inputs(self, pixels: Tensor) -> dict[str, Any]:
        """What transformers' `get_image_features`, or a tower with WINDOWS itself, takes for one picture [3, H, W] of
        normalised pixels.
        """
        return {"pixel_values": pixels[None]}

    @property
    def joined(self) -> int:
        """How many rows of the tower the projector itself makes one token of."""
        return 1

    def positions(self, before: int, grid: Grid, after: int) -> Tensor:
        """Rotary positions of a sample: tokens before the picture, its own, and those after it.

        Returns:
            int64 [tokens], or [3, tokens] where a token has a position in time, height and width.
        """
        return torch.arange(before + grid[0] * grid[1] + after)


class FixedSize(Family):
    """A tower that takes squares of one size alone."""

    PROJECTOR, TOWER = "multi_modal_projector", "vision_tower"

    @property
    def side(self) -> int:
        """Of the square, in pixels."""
        side = self.config.vision_config.image_size
        return int(side[0] if isinstance(side, (list, tuple)) else side)

    @property
    def patch(self) -> int:
        """Side in pixels of a patch of the tower."""
        patch = self.config.vision_config.patch_size
        return int(patch[0] if isinstance(patch, (list, tuple)) else patch)

    def check(self, rule: ResizeConfig) -> None:
        if rule.max_size != self.side or rule.fit == "keep":
            raise UserError(
                f"This model's vision tower takes {self.side} x {self.side} pixels: set "
                f"--data.condition_resize.max_size {self.side} and --data.condition_resize.fit crop (squash, pad)."
            )

    def condition_size(self, size: Size, rule: ResizeConfig) -> Size:
        return self.side, self.side


class Llava(FixedSize):
    """LLaVA: a tower (CLIP, SigLIP), an MLP of two layers, a language model (Llama, Mistral, Qwen2)."""

    CLASS, COLOURS = "LlavaForConditionalGeneration", CLIP

    @property
    def image_token(self) -> int:
        own = getattr(self.config, "image_token_index", None)
        return int(self.config.image_token_id if own is None else own)

    @property
    def pixels_per_token(self) -> int:
        return self.patch


class InternVL(FixedSize):
    """InternVL: InternViT, four patches folded into one token, an MLP, Qwen2 or Llama. A picture is one tile."""

    CLASS, COLOURS, MARKS = "InternVLForConditionalGeneration", IMAGENET, ("<img>", "</img>")

    @property
    def pixels_per_token(self) -> int:
        return round(self.patch / float(self.config.downsample_ratio))


class QwenVL(Family):
    """Qwen2-VL and Qwen2.5-VL: pictures of any size, four patches merged into one token, rotary positions in time,
    height and width.
    """

    PROJECTOR, TOWER, COLOURS, WINDOWS = "visual.merger", "visual", CLIP, True

    @property
    def pixels_per_token(self) -> int:
        return int(self.config.vision_config.patch_size * self.config.vision_config.spatial_merge_size)

    @property
    def joined(self) -> int:
        merge = int(self.config.vision_config.spatial_merge_size)
        return merge * merge

    def check(self, rule: ResizeConfig) -> None:
        if rule.stride % self.pixels_per_token:
            raise UserError(
                f"data.condition_resize.stride is {rule.stride}; this model needs a multiple of "
                f"{self.pixels_per_token}."
            )

    def condition_size(self, size: Size, rule: ResizeConfig) -> Size:
        return fitted_size(*size, rule)

    def tower_inputs(self, pixels: Tensor) -> dict[str, Any]:
        """Flat patches, those of one token next to each other; a still picture fills all frames of a patch.

        Where each patch stands, and which ones attend to each other, transformers would find out on the device: the
        host would wait for it, and tensors without numbers have no answer. So it comes ready-made.
        """
        vision = self.config.vision_config
        frames, patch, merge = vision.temporal_patch_size, vision.patch_size, vision.spatial_merge_size
        rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
        cut = pixels.reshape(3, rows // merge, merge, patch, columns // merge, merge, patch)
        tokens = cut.permute(1, 4, 2, 5, 0, 3, 6).flatten(0, 3)  # [patches, 3, patch, patch]
        flat = tokens[:, :, None].expand(-1, -1, frames, -1, -1).flatten(1)
        grid = torch.tensor([[1, rows, columns]])
        known = _of_grid(rows, columns, merge, getattr(vision, "window_size", 0), patch)
        made = {
            name: to_device(torch.tensor(numbers, dtype=dtype), flat.device) for name, (numbers, dtype) in known.items()
        }
        longest = {
            f"max_{name}seqlen": max(b - a for a, b in pairwise(known[f"cu_{name}seqlens"][0]))
            for name in ("", "window_")
            if f"cu_{name}seqlens" in known
        }
        return {"pixel_values": flat, "grid_thw": grid, **made, **longest}

    def positions(self, before: int, grid: Grid, after: int) -> Tensor:
        rows, columns = grid
        first, then = torch.arange(before), torch.arange(after) + before + max(grid)
        place = torch.meshgrid(torch.arange(1), torch.arange(rows), torch.arange(columns), indexing="ij")
        picture = before + torch.stack([axis.flatten() for axis in place])
        return torch.cat([first.expand(3, -1), picture, then.expand(3, -1)], dim=1)


class Qwen2VL(QwenVL):
    """Qwen2-VL."""

    CLASS = "Qwen2VLForConditionalGeneration"


class Qwen25VL(QwenVL):
    """Qwen2.5-VL, whose tower attends in windows."""

    CLASS = "Qwen2_5_VLForConditionalGeneration"


FAMILIES: Mapping[str, type[Family]] = {family.CLASS: family for family in (Llava, Qwen2VL, Qwen25VL, InternVL)}
"""transformers' class, as config.json names it -> family."""


@lru_cache(maxsize=256)
def _of_grid(rows: int, columns: int, merge: int, window: int, patch: int) -> dict[str, tuple[Any, torch.dtype]]:
    """What transformers' tower takes ready-made of one picture, as plain numbers, by its own functions. Nothing under
    transformers 4, whose tower takes nothing ready-made.

    Args:
        window: side of a window of attention in pixels; 0 for a tower without windows.
    """
    try:
        from transformers import vision_utils
    except ImportError:
        return {}
    with unset_fake_temporarily():
        grid = torch.tensor([[1, rows, columns]])
        made = {
            "position_ids": vision_utils.get_vision_position_ids(grid, merge),
            "cu_seqlens": vision_utils.get_vision_cu_seqlens(grid),
        }
        if window:
            index, windows = vision_utils.get_vision_window_index(grid, merge, window, patch)
            made |= {"window_index": index, "cu_window_seqlens": windows}
        return {name: (tensor.tolist(), tensor.dtype) for name, tensor in made.items()}
