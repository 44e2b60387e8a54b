"""A list of pictures before a kernel runs on it: the arguments checked, then the work divided among programs."""

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

COLUMNS = 256  # output columns times channels of one program


def checked(
    images: Sequence[Tensor],
    size: Size | Sequence[Size],
    patch_size: int,
    blur_sigma: float,
    mean: float | Sequence[float],
    std: float | Sequence[float],
) -> tuple[list[int], list[float], list[float]]:
    """(h, w, h, w, ...), three means, three stds. Raises ValueError that begins with the name of what is wrong."""
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
    one = is_pair(size)
    if not isinstance(size, Sequence):
        raise ValueError(f"size: expected (h, w) or a list of them, got {size}")
    sizes: list[Any] = [size] * len(images) if one else list(size)
    if len(sizes) != len(images):
        raise ValueError(f"size: expected (h, w) or one per image ({len(images)}), got {len(sizes)}")
    for pair in sizes or ([size] if one else []):
        if not is_pair(pair) or any(side < 1 or side % patch_size for side in pair):
            raise ValueError(f"size: expected (h, w) in positive multiples of patch_size={patch_size}, got {pair}")
    sides = [int(side) for pair in sizes for side in pair]
    if not 0 <= blur_sigma < math.inf or (sides and blur_sigma > max(sides)):
        raise ValueError(f"blur_sigma: expected a number from 0 to the longest side of the output, got {blur_sigma}")
    means, stds = three(mean, "mean"), three(std, "std")
    if 0 in stds:
        raise ValueError(f"std: expected no 0, got {std}")
    return sides, means, stds


def is_pair(size: Any) -> bool:
    return isinstance(size, Sequence) and len(size) == 2 and all(hasattr(side, "__index__") for side in size)


def three(value: float | Sequence[float], name: str) -> list[float]:
    """One number per channel."""
    try:
        numbers = [float(value)] * 3 if isinstance(value, int | float) else [float(x) for x in value]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name}: expected a finite number or three of them, got {value}")
    return numbers


def pairs(sides: Sequence[int]) -> list[Size]:
    """[h0, w0, h1, w1, ...] -> [(h0, w0), (h1, w1), ...]."""
    return list(zip(sides[::2], sides[1::2], strict=True))


def token_count(sides: Sequence[int], patch_size: int) -> int:
    """Patches of all pictures together, given the sides [h0, w0, h1, w1, ...] of the resized pictures."""
    return sum((h // patch_size) * (w // patch_size) for h, w in pairs(sides))


class Plan(NamedTuple):
    """What kernels must know of a list of pictures except where they lie; kept per list of shapes and device."""

    # [images, FIELDS] int32: turned (height first), first token; of the first and of the second filter, where in
    # `tables` its starts and its weights are, and its taps; output pixels along either axis; patches across
    images: Tensor
    tables: Tensor  # int32: starts and weights of all filters
    programs: Tensor  # [programs, 4] int32: image, first output line, first patch in it, patches
    tokens: int
    columns: int  # BC
    group: int  # most patches of one program
    even: int  # every program starts at and covers a multiple of this many patches


def plan(
    shapes: tuple[Size, ...], sizes: tuple[Size, ...], patch_size: int, lines: int, sigma: float, device: torch.device
) -> Plan:
    """Kept per stream, too: its copy to the device is ordered before the kernels of that stream alone."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _plan(shapes, sizes, patch_size, lines, sigma, device, stream)


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

    return Plan(upload(images), upload(np.concatenate(parts)), upload(programs), token, columns, group, even)


def addresses(images: Sequence[Tensor], sizes: Sequence[Size]) -> Tensor:
    """[images, 3] int64 on their device: start, bytes from pixel to pixel along the second axis and the first."""
    device = images[0].device
    rows = []
    for x, after in zip(images, sizes, strict=True):
        turned = height_first((x.shape[0], x.shape[1]), after)
        rows.append((x.data_ptr(), x.stride(int(turned)), x.stride(1 - int(turned))))
    return to_device(torch.tensor(rows, dtype=torch.int64), device)


def packed(image: Tensor) -> Tensor:
    """The image itself unless the colours of a pixel are scattered."""
    return image if image.stride(2) == 1 else image.contiguous()
