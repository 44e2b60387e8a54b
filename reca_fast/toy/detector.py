"""What a picture of the toy world shows, told without learning.

A pixel that is far from grey has a colour. Neighbouring pixels of one colour are a thing, unless they are few. Its
shape is that of the most similar of 1,920 drawn templates, or none where even this one is too different. How often that
is wrong, `calibration.py` measures.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from .world import COLOURS, SHAPES, SIDE, Picture, Plane, coverage

CHROMA = 0.22
"""How far from grey a pixel of a thing is, with red, green and blue from 0 to 1: a third of what the colours are."""
FEWEST_CELLS = 12
"""Fewer pixels are no thing, in a picture of SIDE pixels; with another side, as much of the area."""
WORST = 0.22
"""A thing whose squared difference to every template, as a share of its own square, is larger has no shape."""
WINDOW = 0.625
"""Width of a template in units of the side."""
RADII = np.linspace(0.14, 0.22, 8)
OFFSETS = (-0.375, -0.125, 0.125, 0.375)  # of the middle, in pixels
ANGLES = (-0.12, 0.0, 0.12)

Mask = NDArray[np.bool_]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """A thing in a picture. x grows to the right and y downwards, both from 0 to 1."""

    shape: str | None  # None where no template is similar enough
    colour: str
    x: float
    y: float
    cells: int  # how many pixels it has


def detect(pictures: Picture) -> list[list[Found]]:
    """The things in each of N pictures, the largest first.

    Args:
        pictures: uint8 [N, side, side, 3].
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[1] != pictures.shape[2]:
        raise ValueError(f"pictures are uint8 [N, side, side, 3], not {pictures.dtype} {list(pictures.shape)}")
    side = pictures.shape[1]
    strength, classes = _chroma(pictures)
    colours = np.where(strength >= CHROMA, classes, -1)
    labels = _connected(colours)
    # Components by their label, which is larger in every later picture.
    kept, cells = np.unique(labels[labels >= 0], return_counts=True)
    is_thing = cells >= FEWEST_CELLS * (side / SIDE) ** 2
    found: list[list[Found]] = [[] for _ in pictures]
    if not is_thing.any():
        return found
    kept, cells = kept[is_thing], cells[is_thing]
    owners = kept // side**2
    own = labels[owners] == kept[:, None, None]
    shown = np.where(_grown(own) & (own | (labels[owners] < 0)), strength[owners], 0)
    middles = _middles(own)
    shapes = _shapes(_windows(shown, middles, side), side)
    of_colour = colours.reshape(-1)[kept]
    for i, owner in enumerate(owners):
        y, x = (middles[i] + 0.5) / side
        found[owner].append(Found(shapes[i], tuple(COLOURS)[of_colour[i]], float(x), float(y), int(cells[i])))
    return [sorted(things, key=lambda thing: -thing.cells) for things in found]


@cache
def _directions() -> Plane:
    """The direction from grey of every colour: [3, colours], of length 1."""
    levels = np.array(list(COLOURS.values()))
    chroma = levels - levels.mean(axis=1, keepdims=True)
    directions: Plane = (chroma / np.linalg.norm(chroma, axis=1, keepdims=True)).T.astype(np.float32)
    return directions


def _chroma(pictures: Picture) -> tuple[Plane, Labels]:
    """How far each pixel is from grey in the direction of a colour, and which: [N, side, side]."""
    levels = pictures.astype(np.float32) / 255
    along = (levels - levels.mean(axis=-1, keepdims=True)) @ _directions()
    return along.max(axis=-1), along.argmax(axis=-1)


def _connected(colours: Labels) -> Labels:
    """The components of pixels of one colour that share an edge: [N, side, side], -1 where there is no colour.

    A component is numbered by the place of its last pixel among all pixels of all pictures.
    """
    labels = np.where(colours >= 0, np.arange(colours.size).reshape(colours.shape), -1)
    down = (colours[:, 1:] == colours[:, :-1]) & (colours[:, 1:] >= 0)
    right = (colours[:, :, 1:] == colours[:, :, :-1]) & (colours[:, :, 1:] >= 0)
    while True:
        before = labels.copy()
        _take_larger(labels[:, 1:], labels[:, :-1], down)
        _take_larger(labels[:, :, 1:], labels[:, :, :-1], right)
        # A label is the number of a pixel of the same component: taking that pixel's label as well saves many rounds.
        flat = labels.reshape(-1)
        flat[:] = np.where(flat >= 0, flat[flat], -1)
        if np.array_equal(labels, before):
            return labels


def _take_larger(labels: Labels, neighbours: Labels, joined: Mask) -> None:
    """Where joined, both take the larger of their labels."""
    larger = np.where(joined, np.maximum(labels, neighbours), -1)
    np.maximum(labels, larger, out=labels)
    np.maximum(neighbours, larger, out=neighbours)


def _grown(masks: Mask) -> Mask:
    """Every mask and the pixels around it, with those at its corners."""
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    grown: Mask = rows[:, :, :-2] | rows[:, :, 1:-1] | rows[:, :, 2:]
    return grown


def _middles(masks: Mask) -> NDArray[np.float64]:
    """The centres of K masks, as row and column in pixels: [K, 2]."""
    cells, steps = masks.sum(axis=(1, 2)), np.arange(masks.shape[1])
    return np.stack([(masks.sum(axis=2) * steps).sum(1) / cells, (masks.sum(axis=1) * steps).sum(1) / cells], axis=1)


def _windows(planes: Plane, middles: NDArray[np.float64], side: int) -> Plane:
    """A square of each of K planes around the pixel nearest to its middle, 0 outside of the plane: [K, w, w]."""
    half = round(WINDOW * side / 2)
    padded = np.pad(planes, ((0, 0), (half, half), (half, half)))
    first = np.rint(middles).astype(int)
    steps = np.arange(2 * half + 1)
    rows, columns = (first[:, axis, None] + steps for axis in (0, 1))
    windows: Plane = padded[np.arange(len(planes))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return windows


@cache
def _templates(side: int) -> tuple[Plane, NDArray[np.int64]]:
    """Every shape in many radii, rotations and places between pixels, of length 1, and its number in SHAPES."""
    middle = (side // 2 + 0.5) / side
    kinds = list(product(SHAPES, RADII, OFFSETS, OFFSETS, ANGLES))
    places = np.array([(middle + x / side, middle + y / side, radius, angle) for _, radius, x, y, angle in kinds])
    drawn = coverage([shape for shape, *_ in kinds], places, side)
    windows = _windows(drawn, _middles(drawn >= 0.5), side).reshape(len(kinds), -1)
    windows /= np.linalg.norm(windows, axis=1, keepdims=True)
    return windows, np.array([SHAPES.index(shape) for shape, *_ in kinds])


def _shapes(windows: Plane, side: int, at_once: int = 512) -> list[str | None]:
    """The shape that each of K windows shows.

    A template differs from a window, with the factor that fits best, by 1 - cosine^2 of the window's square.
    """
    templates, kinds = _templates(side)
    flat = windows.reshape(len(windows), -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    shapes: list[str | None] = []
    for start in range(0, len(flat), at_once):
        cosines = flat[start : start + at_once] @ templates.T
        best = cosines.argmax(axis=1)
        fits = 1 - cosines.max(axis=1) ** 2 <= WORST
        shapes += [SHAPES[kind] if fit else None for kind, fit in zip(kinds[best], fits, strict=True)]
    return shapes
