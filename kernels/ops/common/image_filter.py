"""Antialiased bicubic resize, after an optional Gaussian blur, as one band of integer weights per axis.

The numbers are Pillow's, down to the rounding: a = -0.5, support scaled by the downscale factor, weights normalised and
rounded to 22 bits after the point, one axis after the other, each rounded and clipped to uint8. Pillow 12 and before
filter the width first. Pillow 13 filters the height first in some pictures (`height_first`), and so it is done here; in
tall pictures the two orders differ by a grey level, and by more beside hard edges, where values are clipped.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

PRECISION = 22
"""Bits after the point of a weight, as in Pillow."""
TRUNCATE = 4.0
"""Where the Gaussian ends, in sigmas."""

Size = tuple[int, int]
"""Height and width in pixels."""


class Filter(NamedTuple):
    """One axis of a resize: output o is the sum over t of weights[t, o] * source[start[o] + t] / 2**PRECISION.

    No tap lies outside the source.
    """

    start: np.ndarray
    """[out] int32, never decreasing."""
    weights: np.ndarray
    """[taps, out] int32."""


@lru_cache(maxsize=1024)
def axis_filter(source: int, out: int, sigma: float) -> Filter:
    """The filter from `source` to `out` pixels; before it a Gaussian of `sigma` output pixels, if that is above 0, for
    which the pixels of the edge are repeated beyond it.
    """
    start, weights = _bicubic(source, out)
    if sigma > 0:
        start, weights = _blurred(start, weights, source, sigma * source / out)
    last = start + 1 + np.array([np.flatnonzero(row)[-1] for row in weights])
    taps = int((last - start).max())
    moved = np.minimum(start, source - taps)  # bands at the end begin earlier instead of ending outside
    table = np.zeros((out, taps))
    columns = np.arange(taps) + (moved - start)[:, None]
    reached = (columns >= 0) & (columns < weights.shape[1])
    table[reached] = np.take_along_axis(weights, columns.clip(0, weights.shape[1] - 1), axis=1)[reached]
    fixed = np.trunc(table * 2.0**PRECISION + np.copysign(0.5, table))
    return Filter(moved.astype(np.int32), np.ascontiguousarray(fixed.T.astype(np.int32)))


def _bicubic(source: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the taps of each output begin [out], and their weights [out, taps] in fp64; a single tap of 1 when source
    and out are equal.
    """
    if source == out:
        return np.arange(out), np.ones((out, 1))
    scale = source / out
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    centre = (np.arange(out) + 0.5) * scale
    start = np.maximum(np.trunc(centre - support + 0.5), 0).astype(np.int64)
    stop = np.minimum(np.trunc(centre + support + 0.5), source).astype(np.int64)
    taps = np.arange(int((stop - start).max()))
    x = np.abs((taps + start[:, None] - centre[:, None] + 0.5) * (1.0 / stretch))
    a = -0.5
    near, far = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0, (((x - 5.0) * x + 8.0) * x - 4.0) * a
    weights = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0)) * (taps < (stop - start)[:, None])
    return start, weights / np.cumsum(weights, axis=1)[:, -1:]


def _blurred(start: np.ndarray, weights: np.ndarray, source: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """The filter that blurs by `sigma` source pixels and then applies the given one."""
    out, taps = weights.shape
    radius = int(TRUNCATE * sigma + 0.5)
    gauss = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    gauss /= gauss.sum()
    spread = np.zeros((out, taps + 2 * radius))
    for tap in range(taps):
        spread[:, tap : tap + len(gauss)] += weights[:, tap, None] * gauss
    place = (start[:, None] - radius + np.arange(spread.shape[1])).clip(0, source - 1)
    begin = place[:, 0]
    folded = np.zeros((out, int((place[:, -1] - begin).max()) + 1))
    np.add.at(folded, (np.arange(out)[:, None], place - begin[:, None]), spread)
    return begin, folded


def height_first(before: Size, after: Size) -> bool:
    """Whether Pillow 13 filters the columns of this (height, width) before its rows."""
    removed = before[0] - after[0]
    return removed > 0 and removed > 2 * (before[1] - after[1])


def resized(image: Tensor, size: Size, blur_sigma: float = 0.0) -> Tensor:
    """A picture uint8 [H, W, 3] resized to uint8 [h, w, 3]. Without blur the bits are those of Pillow's bicubic."""
    before = (image.shape[0], image.shape[1])
    for axis in (0, 1) if height_first(before, size) else (1, 0):
        table = axis_filter(before[axis], size[axis], blur_sigma)
        image = _filtered_axis(image.transpose(0, axis), table).transpose(0, axis)
    return image


def _filtered_axis(x: Tensor, table: Filter) -> Tensor:
    """x [source, rest, 3] uint8 filtered along its first axis, [out, rest, 3].

    The filter is a banded matrix, which is multiplied in blocks of rows; fp64 holds all the integers exactly.
    """
    taps, out = table.weights.shape
    if taps == 1:
        return x[torch.from_numpy(table.start).to(x.device, torch.int64)]
    source, block = x.flatten(1), 16
    result = torch.empty((out, source.shape[1]), dtype=torch.uint8, device=x.device)
    for begin in range(0, out, block):
        part = slice(begin, min(begin + block, out))
        start = table.start[part]
        low, high = int(start[0]), int(start[-1]) + taps
        dense = np.zeros((len(start), high - low))
        np.put_along_axis(dense, start[:, None] - low + np.arange(taps), table.weights[:, part].T, axis=1)
        total = torch.from_numpy(dense).to(x.device) @ source[low:high].double()
        result[part] = total.add_(2.0 ** (PRECISION - 1)).mul_(2.0**-PRECISION).floor_().clamp_(0, 255)
    return result.unflatten(1, x.shape[1:])
