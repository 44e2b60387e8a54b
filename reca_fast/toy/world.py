"""The toy world: small pictures of coloured shapes, each a function of its pool and its number alone.

A scene says what a picture shows, and `render` draws it with everything that a scene does not say: shades, sizes, exact
places, a ground. So a picture is never stored, and whatever is asked of it can be checked exactly (`detector.py`).

In the pictures that a base learns to draw, nearly every circle is red, so asking it for a green one tells whether it
listens. A shape in its held-out colour is in no picture that any model learns to draw.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from reca_fast.errors import UserError, did_you_mean

SIDE = 32
"""Width and height of a picture in pixels."""
SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.15, 0.80, 0.18),
    "blue": (0.18, 0.25, 0.92),
    "yellow": (0.94, 0.86, 0.14),
    "magenta": (0.90, 0.15, 0.86),
    "cyan": (0.14, 0.84, 0.88),
}
"""Colour -> red, green and blue from 0 to 1, before the shade of each thing is drawn."""
DOMINANT = {"circle": "red", "square": "blue", "triangle": "green", "cross": "yellow", "ring": "magenta"}
"""Shape -> the colour that it nearly always has in the pool `base`."""
HELD_OUT = {"circle": "yellow", "square": "magenta", "triangle": "red", "cross": "cyan", "ring": "blue"}
"""Shape -> the colour that it has in the pool `understanding` alone."""
BIAS = 0.92
"""The share of things in their dominant colour in the pool `base`."""
RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""Relation of one thing to another -> the relation of the other to the one."""
PLACES = {"left": (0.25, 0.5), "right": (0.75, 0.5), "top": (0.5, 0.25), "bottom": (0.5, 0.75)}
"""Where a single thing stands -> the middle of that place: x to the right and y downwards, from 0 to 1."""
FEWEST, MOST = 2, 4
"""How many equal things a scene of several has."""
SINGLE, PAIR = 0.35, 0.50
"""The shares of scenes with one thing and with two different ones; the others have several equal things."""

Plane = NDArray[np.float32]
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Pool:
    """A collection of pictures: how many there are, how much they vary, and which colours its shapes have."""

    size: int  # how many pictures the source toy:POOL has; `scene_of` and `render` take any number
    jitter: float  # how much size, place and rotation vary, from 0 to 1
    mentions: float  # how often a sparse caption says the colour of a thing
    colours: str  # "all", "biased" (nearly always dominant), "seen" (all but held out) or "rare"


POOLS = {
    "understanding": Pool(size=16384, jitter=1.0, mentions=0.15, colours="all"),
    "base": Pool(size=16384, jitter=0.35, mentions=0.15, colours="biased"),
    "posttraining": Pool(size=8192, jitter=0.35, mentions=0.03, colours="seen"),
    "validation": Pool(size=1024, jitter=0.35, mentions=0.03, colours="rare"),
}


@dataclass(frozen=True)
class Thing:
    """One shape in one colour."""

    shape: str
    colour: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Of one thing, `relation` is its place: left, right, top or bottom. Of two different things, it is how the first
    stands to the second: left of, right of, above or below. Of several equal things, it is empty.
    """

    things: tuple[Thing, ...]
    relation: str = ""


def pool_named(name: str) -> Pool:
    """The pool with this name.

    Raises:
        UserError: there is none.
    """
    if name not in POOLS:
        known = ", ".join(POOLS)
        raise UserError(f"The toy world has no pool {name!r}; its pools are {known}.{did_you_mean(name, POOLS)}")
    return POOLS[name]


def numbers(purpose: str, pool: str, index: int) -> np.random.Generator:
    """The random numbers for one purpose (such as "scene") of one picture, a function of the three alone."""
    if index < 0:
        raise ValueError(f"the pictures of a pool are numbered from 0, not {index}")
    named = int.from_bytes(blake2b(f"{purpose} {pool}".encode(), digest_size=8).digest(), "little")
    return np.random.Generator(np.random.Philox(key=np.array([named, index], dtype=np.uint64)))


def rare_colours(shape: str) -> list[str]:
    """The colours that a shape has in few pictures of `base`: neither its dominant nor its held-out one."""
    return [colour for colour in COLOURS if colour not in (DOMINANT[shape], HELD_OUT[shape])]


def scene_of(pool: str, index: int) -> Scene:
    """What the picture with this number shows.

    Raises:
        UserError: there is no such pool.
    """
    colours = pool_named(pool).colours
    random = numbers("scene", pool, index)
    kind = random.random()
    shapes = [SHAPES[i] for i in random.permutation(len(SHAPES))[:2]]
    first, second = (Thing(shape, _colour(shape, colours, random)) for shape in shapes)
    if kind < SINGLE:
        return Scene((first,), _one_of(tuple(PLACES), random))
    if kind < SINGLE + PAIR:
        return Scene((first, second), _one_of(tuple(RELATIONS), random))
    return Scene((first,) * int(random.integers(FEWEST, MOST + 1)))


def _one_of(choices: Sequence[str], random: np.random.Generator) -> str:
    return choices[int(random.integers(len(choices)))]


def _colour(shape: str, colours: str, random: np.random.Generator) -> str:
    if colours == "all":
        return _one_of(tuple(COLOURS), random)
    if colours == "rare":
        return _one_of(rare_colours(shape), random)
    if colours == "seen":
        return _one_of([colour for colour in COLOURS if colour != HELD_OUT[shape]], random)
    return DOMINANT[shape] if random.random() < BIAS else _one_of(rare_colours(shape), random)


# --- drawing. Every length is in units of the side, x to the right and y downwards, from the upper left corner

RADIUS, RADIUS_OF_MANY = 0.19, 0.165
"""Of one or two things, and of several."""
MORE_OR_LESS_RADIUS, MORE_OR_LESS_PLACE, MORE_OR_LESS_ANGLE = 0.02, 0.045, 0.2
"""How far a thing may be from the usual at full jitter: in units of the side, and in radians."""
SHADE = 0.05
"""Standard deviation of each channel of a thing's colour."""
DARKEST, BRIGHTEST, TINT, SLOPE, NOISE = 0.06, 0.42, 0.03, 0.12, 0.012
"""The ground: range of its grey, largest tint of a channel, largest slope over the picture, deviation of the noise."""


def _circle(x: Plane, y: Plane) -> Plane:
    return np.sqrt(x * x + y * y) - 1


def _square(x: Plane, y: Plane) -> Plane:
    return np.maximum(abs(x), abs(y)) - np.float32(0.86)


def _triangle(x: Plane, y: Plane) -> Plane:
    steep, flat = (np.float32(length / math.hypot(1.85, 1.05)) for length in (1.85, 1.05))
    distance: Plane = np.maximum(steep * abs(x) - flat * (y + np.float32(1.1)), y - np.float32(0.75))
    return distance


def _cross(x: Plane, y: Plane) -> Plane:
    x, y, width = abs(x), abs(y), np.float32(0.34)
    distance: Plane = np.minimum(np.maximum(x - 1, y - width), np.maximum(y - 1, x - width))
    return distance


def _ring(x: Plane, y: Plane) -> Plane:
    return abs(_circle(x, y) + np.float32(0.21)) - np.float32(0.21)


DISTANCES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
}
"""Shape -> the signed distance to the edge of the shape of radius 1 around the origin, below 0 inside."""


def coverage(shapes: Sequence[str], places: NDArray[np.float64], side: int = SIDE) -> Plane:
    """How much of each pixel a shape covers, from 0 to 1.

    Args:
        shapes: K names.
        places: [K, 4]: x and y of the middle, the radius, all in units of the side, and the rotation in radians.
        side: of the picture in pixels.

    Returns:
        [K, side, side].
    """
    middle = ((np.arange(side) + 0.5) / side).astype(np.float32)
    x, y, radius = (places[:, i].astype(np.float32)[:, None, None] for i in range(3))
    turn = [np.array([f(angle) for angle in places[:, 3]], np.float32)[:, None, None] for f in (math.cos, math.sin)]
    right, down = (middle[None, None, :] - x) / radius, (middle[None, :, None] - y) / radius
    along, across = right * turn[0] + down * turn[1], down * turn[0] - right * turn[1]
    covered = np.empty((len(shapes), side, side), np.float32)
    for shape, distance in DISTANCES.items():
        of_shape = [k for k, name in enumerate(shapes) if name == shape]
        if of_shape:
            pixels = distance(along[of_shape], across[of_shape]) * (radius[of_shape] * side)
            covered[of_shape] = np.clip(np.float32(0.5) - pixels, 0, 1)
    return covered


def render(scene: Scene, pool: str, index: int, side: int = SIDE) -> Picture:
    """The picture of a scene: uint8 [side, side, 3], a function of the arguments alone.

    Raises:
        UserError: there is no such pool.
    """
    picture: Picture = render_many([scene], pool, [index], side)[0]
    return picture


def render_many(scenes: Sequence[Scene], pool: str, indices: Sequence[int], side: int = SIDE) -> Picture:
    """The pictures of N scenes, each as `render` gives it: uint8 [N, side, side, 3].

    Raises:
        UserError: there is no such pool.
    """
    jitter = pool_named(pool).jitter
    pictures = np.empty((len(scenes), side, side, 3), np.float32)
    layers: list[list[int]] = [[] for _ in range(MOST)]  # the numbers of the pictures that have a k-th thing
    drawn: list[list[tuple[str, NDArray[np.float64], Plane]]] = [[] for _ in range(MOST)]
    for number, (scene, index) in enumerate(zip(scenes, indices, strict=True)):
        random = numbers("picture", pool, index)
        pictures[number] = _ground(random, side)
        for layer, (thing, place) in enumerate(zip(scene.things, _places(scene, jitter, random), strict=True)):
            shade = np.array(COLOURS[thing.colour]) + SHADE * random.standard_normal(3)
            layers[layer].append(number)
            drawn[layer].append((thing.shape, place, np.clip(shade, 0, 1).astype(np.float32)))
    for having, things in zip(layers, drawn, strict=True):
        if things:
            shapes, places, shades = zip(*things, strict=True)
            alpha = coverage(shapes, np.stack(places), side)[..., None]
            pictures[having] += alpha * (np.stack(shades)[:, None, None, :] - pictures[having])
    levels: Picture = np.rint(np.clip(pictures, 0, 1) * 255).astype(np.uint8)
    return levels


def _ground(random: np.random.Generator, side: int) -> Plane:
    """A ground of one tint that grows brighter to one side, with noise: [side, side, 3]."""
    grey, slope = random.uniform(DARKEST, BRIGHTEST), random.uniform(0, SLOPE)
    tint = random.uniform(-TINT, TINT, 3)
    angle = random.uniform(0, 2 * math.pi)
    along = (np.arange(side) + 0.5) / side - 0.5
    ramp = slope * (math.cos(angle) * along[None, :] + math.sin(angle) * along[:, None])
    noise = random.standard_normal((side, side, 3), np.float32)
    return (grey + tint + ramp[..., None]).astype(np.float32) + np.float32(NOISE) * noise


def _places(scene: Scene, jitter: float, random: np.random.Generator) -> NDArray[np.float64]:
    """x, y, radius and rotation of each thing: [things, 4]."""
    if scene.relation in PLACES:
        middles = [PLACES[scene.relation]]
    elif scene.relation:
        first = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}[scene.relation]
        x, y = PLACES[first]
        middles = [(x, y), (1 - x, 1 - y)]
    else:
        cells = random.permutation(MOST)[: len(scene.things)]
        middles = [(0.25 + 0.5 * (cell % 2), 0.25 + 0.5 * (cell // 2)) for cell in map(int, cells)]
    usual = [[x, y, RADIUS if scene.relation else RADIUS_OF_MANY, 0.0] for x, y in middles]
    spread = np.array([MORE_OR_LESS_PLACE, MORE_OR_LESS_PLACE, MORE_OR_LESS_RADIUS, MORE_OR_LESS_ANGLE])
    return np.array(usual) + jitter * spread * random.uniform(-1, 1, (len(usual), 4))
