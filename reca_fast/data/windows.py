"""Which part of a picture is shown, and how it becomes a square: `data.condition_resize.fit` and
`data.target_resize.fit`.

A window is a rectangle over a picture, in the picture's pixels as it is seen. What lies in it is resized to the size
that `images.fitted_size` gives. It is the whole picture (keep, squash), a square inside of it (crop), or a square
around it (pad).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from reca_fast.config import Fit
from reca_fast.data.images import Method, resize
from reca_fast.data.orientation import FLIPS
from reca_fast.randomness import stable_uniform

GREY = 127
"""Level of all three channels where a window shows no picture."""
ROWS = 256
"""Rows of a picture that are padded at a time: the square around a panorama can have a hundred times its pixels."""


class Window(NamedTuple):
    """A rectangle over a picture, in pixels."""

    left: int  # below 0 where the window begins outside of the picture
    top: int
    width: int
    height: int


def window_of(width: int, height: int, fit: Fit, place: float) -> Window:
    """The part of a picture that is shown.

    Args:
        width, height: of the picture, in pixels.
        fit: of the `ResizeConfig` in question.
        place: where a crop lies along the longer side, from 0 (left or top) to 1, which it does not reach.
    """
    short, long = sorted((width, height))
    if fit == "crop":
        offset = int(place * (long - short + 1))
        return Window(offset, 0, short, short) if width > height else Window(0, offset, short, short)
    if fit == "pad":
        return Window(-((long - width) // 2), -((long - height) // 2), long, long)
    return Window(0, 0, width, height)


def place_of_crop(seed: int, epoch: int, key: str) -> float:
    """Where the crop of the record `key` lies in `epoch`, in [0, 1). `seed` is that of the data (`data.seed`)."""
    return stable_uniform("crop", seed, epoch, key)


def before_turning(window: Window, width: int, height: int, turn: int) -> Window:
    """The window over the pixels as they lie in a file, from that over the picture as it is seen.

    Args:
        window: over the picture after `orientation.upright`.
        width, height: of that picture, in pixels.
        turn: its EXIF orientation.
    """
    left, top, w, h = window
    flips = FLIPS.get(turn, ())
    if 1 in flips:
        left = width - left - w
    if 0 in flips:
        top = height - top - h
    return Window(top, left, h, w) if turn >= 5 else Window(left, top, w, h)


def resize_window(image: Tensor, window: Window, size: tuple[int, int], method: Method) -> Tensor:
    """What a window shows of uint8 [H, W, 3], resized to size = (width, height), as `images.resize` does it.

    What lies outside of the picture is GREY. The result is that of resizing a picture of the window's whole size.
    """
    left, top, width, height = window
    h, w = image.shape[:2]
    if (left, top, width, height) == (0, 0, w, h):
        return resize(image, size, method)
    if left >= 0 and top >= 0:
        return resize(image[top : top + height, left : left + width].contiguous(), size, method)
    # Rows are resized first and then columns, as Pillow and torch do, with the rows of grey put in between.
    parts = [resize(_amid_grey(rows, -left, width, dim=1), (size[0], len(rows)), method) for rows in image.split(ROWS)]
    return resize(_amid_grey(torch.cat(parts), -top, height, dim=0), size, method)


def _amid_grey(image: Tensor, before: int, length: int, dim: int) -> Tensor:
    """The picture with GREY before and behind it along `dim`, so that it has `length` pixels there."""
    if image.shape[dim] == length:
        return image
    shape = list(image.shape)
    shape[dim] = length
    padded = torch.full(shape, GREY, dtype=torch.uint8)
    padded.narrow(dim, before, image.shape[dim]).copy_(image)
    return padded
