"""What a vision model of transformers is shown of a picture, as the file beside its weights says.

transformers has several implementations of this and takes one by what is installed; their results differ in the last
digits. This one is the same everywhere, so that a score is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reca_fast.schema import PositiveInt, from_dict, read_json

FILE, NEWER = "preprocessor_config.json", "processor_config.json"
"""The file that says it, or the one of newer releases, where an object `image_processor` does."""
Sides = PositiveInt | dict[str, PositiveInt]


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become what a model reads. The fields have the names that they have in the file."""

    size: Sides  # {"shortest_edge": pixels}, or {"height": pixels, "width": pixels}, or in older files a number
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    crop_size: Sides | None = None
    do_center_crop: bool = False
    do_resize: bool = True
    do_normalize: bool = True
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    resample: int = 3  # Pillow's bicubic

    def __post_init__(self) -> None:
        if not (self.do_resize and self.do_normalize and self.do_rescale):
            raise ValueError("a step is switched off: pictures have to be resized, rescaled and normalized")
        known = [int(method) for method in Image.Resampling]
        if self.resample not in known:
            raise ValueError(f"resample={self.resample} is none of Pillow's methods")
        if min(self.image_std) <= 0:
            raise ValueError("image_std has to be above 0")
        if self.do_center_crop:
            _height_and_width(self.crop_size)
        if self._shortest is None:
            _height_and_width(self.size)

    @property
    def _shortest(self) -> int | None:
        """The length of the shorter side after resizing; None where `size` is a height and a width."""
        if isinstance(self.size, int):
            return self.size if self.do_center_crop else None
        return self.size.get("shortest_edge")

    def __call__(self, picture: Tensor) -> Tensor:
        """What the model reads of a picture (uint8 [H, W, 3]): fp32 [3, height, width]."""
        image = Image.fromarray(picture.cpu().numpy())
        width, height = image.size
        if (short := self._shortest) is not None:
            sides = int(width * short / min(width, height)), int(height * short / min(width, height))
        else:
            sides = _height_and_width(self.size)[::-1]
        image = image.resize(sides, Image.Resampling(self.resample))
        if self.do_center_crop:
            height, width = _height_and_width(self.crop_size)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))  # black where there is no picture
        pixels = np.asarray(image, dtype=np.float32) * np.float32(self.rescale_factor)
        mean, std = (np.array(values, np.float32) for values in (self.image_mean, self.image_std))
        return torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)


def _height_and_width(sides: Sides | None) -> tuple[int, int]:
    if isinstance(sides, int):
        return sides, sides
    if sides is None or not {"height", "width"} <= sides.keys():
        raise ValueError("size or crop_size is neither a number nor {height, width}")
    return sides["height"], sides["width"]


def read_preprocessing(folder: Path) -> Preprocessing:
    """The preprocessing of the model whose weights are in a folder.

    Raises:
        UserError: no file of the folder says it, or it says what is not understood.
    """
    path = folder / FILE
    if path.exists() or not (folder / NEWER).exists():
        return from_dict(Preprocessing, read_json(path), str(path))
    values: Any = read_json(folder / NEWER)
    inside = values.get("image_processor") if isinstance(values, dict) else None
    return from_dict(Preprocessing, inside, f"{folder / NEWER}, image_processor")
