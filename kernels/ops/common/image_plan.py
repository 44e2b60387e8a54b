"""A list of pictures before a kernel works on it: its arguments are checked, then its work is divided into programs."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .image_filter import Size, axis_filter, height_first
from .optional_triton import triton
from .transfer import to_device

COLUMNS = 256
"""Numbers of a picture's row, columns times channels, that one program writes."""


class Preparation(NamedTuple):
    """What is done to a list of pictures. Its fields are what an operation of torch can take."""

    sides: list[int]
    """Height and width in pixels of the first picture after the resize, of the second, and so on."""
    patch_size: int
    """Side of a patch in pixels."""
    blur_sigma: float
    """Of the Gaussian before the resize, in output pixels; 0 is none."""
    mean: list[float]
    """Of each channel, for pixels in [0, 1]."""
    std: list[float]
    """Of each channel, for pixels in [0, 1]."""

    def sizes(self) -> list[Size]:
        """(height, width) of every picture after the resize."""
        return list(zip(self.sides[::2], self.sides[1::2], strict=True))

    def patches(self) -> int:
        """Of all pictures."""
        return sum((h // self.patch_size) * (w // self.patch_size) for h, w in self.sizes())

    def features(self) -> int:
        """Numbers of a patch."""
        return self.patch_size**2 * 3


def checked(
    images: Sequence[Tensor],
    size: Size | Sequence[Size],
    patch_size: int,
    blur_sigma: float,
    mean: float | Sequence[float],
    std: float | Sequence[float],
) -> Preparation:
    """The arguments of `blur_patchify`, checked. Raises ValueError that begins with the name of what is wrong."""
    if not isinstance(patch_size, int) or isinstance(patch_size, bool) or patch_size < 1:
        raise ValueError(f"patch_size: expected a positive integer, got {patch_size!r}")
    if not isinstance(images, Sequence):
        raise ValueError(f"images: expected a sequence of tensors, got {type(images).__name__}")
    for number, image in enumerate(images):
        if not isinstance(image, Tensor):
            raise ValueError(f"images[{number}]: expected a tensor, got {type(image).__name__}")
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[2] != 3 or 0 in image.shape:
            got = f"{image.dtype} {list(image.shape)}"
            raise ValueError(f"images[{number}]: expected uint8 [H, W, 3] with H and W above 0, got {got}")
        if image.device != images[0].device:
            raise ValueError(f"images[{number}]: expected the device {images[0].device}, got {image.device}")
    one = _is_pair(size)
    if not isinstance(size, Sequence):
        raise ValueError(f"size: expected (h, w) or a list of them, got {size}")
    sizes: list[Any] = [size] * len(images) if one else list(size)
    if len(sizes) != len(images):
        raise ValueError(f"size: expected (h, w) or one per image ({len(images)}), got {len(sizes)}")
    for pair in sizes or ([size] if one else []):
        if not _is_pair(pair) or any(side < 1 or side % patch_size for side in pair):
            raise ValueError(f"size: expected (h, w) in positive multiples of patch_size={patch_size}, got {pair}")
    sides = [int(side) for pair in sizes for side in pair]
    if not 0 <= blur_sigma < math.inf or (sides and blur_sigma > max(sides)):
        raise ValueError(f"blur_sigma: expected a number from 0 to the longest side of the output, got {blur_sigma}")
    means, stds = _three(mean, "mean"), _three(std, "std")
    if 0 in stds:
        raise ValueError(f"std: expected no 0, got {std}")
    return Preparation(sides, patch_size, float(blur_sigma), means, stds)


def _is_pair(size: Any) -> bool:
    return isinstance(size, Sequence) and len(size) == 2 and all(hasattr(side, "__index__") for side in size)


def _three(value: float | Sequence[float], name: str) -> list[float]:
    """One number per channel."""
    try:
        numbers = [float(value)] * 3 if isinstance(value, int | float) else [float(x) for x in value]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name}: expected a finite number or three of them, got {value}")
    return numbers


class Plan(NamedTuple):
    """What kernels must know of a list of pictures except where they lie. It is kept per list of shapes and device."""

    images: Tensor
    """[images, 11] int32. Of each picture: whether its height is filtered first; the number of its first patch; where
    in `tables` the starts and the weights of its first filter are, and how many taps it has; the same of its second
    filter; output pixels along the axis that is filtered first and along the other; patches in a row.
    """
    tables: Tensor
    """int32, the starts and the weights of all filters (see image_filter.py)."""
    programs: Tensor
    """[programs, 4] int32. Of each program: the picture, its first output line, its first patch there, its patches."""
    columns: int
    """Columns times channels that a program has room for."""
    group: int
    """The most patches that a program has."""
    even: int
    """Every program starts at a multiple of this many patches, and has a multiple of this many."""


def plan(images: Sequence[Tensor], preparation: Preparation, lines: int) -> Plan:
    """How programs of `lines` output lines divide the work on these pictures.

    A plan is kept per stream as well: its copy to the device is ordered before the kernels of that stream alone.
    """
    device = images[0].device
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    shapes = tuple((x.shape[0], x.shape[1]) for x in images)
    return _plan(
        shapes, tuple(preparation.sizes()), preparation.patch_size, lines, preparation.blur_sigma, device, stream
    )


@lru_cache(maxsize=256)
def _plan(
    shapes: tuple[Size, ...],
    sizes: tuple[Size, ...],
    patch_size: int,
    lines: int,
    sigma: float,
    device: torch.device,
    stream: int,
) -> Plan:
    columns = max(COLUMNS, triton.next_power_of_2(patch_size * 3))
    group = columns // (patch_size * 3)
    group -= group % 2 if group > 1 else 0
    places: dict[tuple[int, int], tuple[int, int, int]] = {}
    parts: list[np.ndarray] = []
    filled = token = 0

    def place(source: int, out: int) -> tuple[int, int, int]:
        nonlocal filled
        if (source, out) not in places:
            table = axis_filter(source, out, sigma)
            parts.extend((table.start, table.weights.ravel()))
            places[source, out] = (filled, filled + out, len(table.weights))
            filled += out + table.weights.size
        return places[source, out]

    images, programs, even = [], [], 16
    for number, (before, after) in enumerate(zip(shapes, sizes, strict=True)):
        turned = height_first(before, after)
        first, second = (0, 1) if turned else (1, 0)  # the axis that is filtered first; a program's lines lie across it
        tables = (*place(before[first], after[first]), *place(before[second], after[second]))
        rows, across = after[0] // patch_size, after[1] // patch_size
        images.append((turned, token, *tables, after[first], after[second], across))
        along = after[first] // patch_size
        for line in range(0, after[second], patch_size):
            for inner in range(0, patch_size, lines):
                for patch in range(0, along, group):
                    programs.append((number, line + inner, patch, min(group, along - patch)))
        even = math.gcd(even, token, across, group if along > group else 0)
        token += rows * across

    def upload(rows: Any) -> Tensor:
        return to_device(torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int32)), device)

    return Plan(upload(images), upload(np.concatenate(parts)), upload(programs), columns, group, even)


def addresses(images: Sequence[Tensor], sizes: Sequence[Size]) -> Tensor:
    """[images, 3] int64 on their device: the address of each picture, and the bytes from one pixel to the next along
    the axis that is filtered second and along the axis that is filtered first.
    """
    device = images[0].device
    rows = []
    for x, after in zip(images, sizes, strict=True):
        turned = height_first((x.shape[0], x.shape[1]), after)
        rows.append((x.data_ptr(), x.stride(int(turned)), x.stride(1 - int(turned))))
    return to_device(torch.tensor(rows, dtype=torch.int64), device)


def packed(image: Tensor) -> Tensor:
    """The picture with the three colours of a pixel side by side; a copy only where they are not."""
    return image if image.stride(2) == 1 else image.contiguous()
