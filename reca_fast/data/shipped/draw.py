"""Draw the pictures that ship: `python -m reca_fast.data.shipped.draw FOLDER` writes them anew, the same every time.

A picture shows one large shape and a small one on a ground that grows darker to one side. Every pair of a shape and a
colour occurs once as the large one, so what a caption says is what tells the pictures apart.
"""

import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 96
"""Width and height of a picture in pixels."""
Plane = NDArray[np.float64]

SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": lambda x, y: 1 - np.hypot(x, y),
    "square": lambda x, y: 0.85 - np.maximum(abs(x), abs(y)),
    "diamond": lambda x, y: (1.1 - abs(x) - abs(y)) / math.sqrt(2),
    "ring": lambda x, y: 0.22 - abs(np.hypot(x, y) - 0.75),
    "cross": lambda x, y: np.maximum(np.minimum(0.3 - abs(x), 0.95 - abs(y)), np.minimum(0.3 - abs(y), 0.95 - abs(x))),
    "triangle": lambda x, y: np.minimum(0.7 - y, (y + 1) / math.sqrt(5) - abs(x) * 2 / math.sqrt(5) + 0.1),
}
"""Distance to the edge, above 0 inside, of a shape of radius 1 around the origin; y grows downwards."""
COLOURS = {
    "red": (200, 40, 40),
    "orange": (235, 130, 30),
    "yellow": (235, 205, 50),
    "green": (50, 150, 70),
    "blue": (40, 80, 190),
    "purple": (130, 60, 160),
    "black": (30, 30, 35),
    "white": (245, 245, 245),
}
GROUNDS = {"sand": (214, 196, 160), "sky": (160, 196, 224), "mint": (170, 214, 186), "rose": (222, 178, 184)}
PLACES = {"upper left": (-1, -1), "upper right": (1, -1), "lower left": (-1, 1), "lower right": (1, 1)}


class Scene(NamedTuple):
    """What one picture shows."""

    colour: str
    shape: str
    small_colour: str
    small_shape: str
    place: str  # of the small shape; the large one stands on the other side
    ground: str

    @property
    def short(self) -> str:
        return f"a {self.colour} {self.shape}"

    @property
    def long(self) -> str:
        return (
            f"A large {self.colour} {self.shape} on a ground of {self.ground}, "
            f"with a small {self.small_colour} {self.small_shape} in the {self.place}."
        )

    def turns(self) -> list[tuple[str, str]]:
        """Questions about the picture, and their answers."""
        return [
            ("Which shape is large?", f"The {self.shape}."),
            ("Which colour does it have?", f"It is {self.colour}."),
            (f"What is in the {self.place}?", f"A small {self.small_colour} {self.small_shape}."),
        ]


def scenes() -> Iterator[Scene]:
    """The scenes of all pictures, in order; the second shape, its place and the ground are drawn from a fixed seed."""
    draw = random.Random(0)

    def one(of: dict[str, Any]) -> str:
        return list(of)[int(draw.random() * len(of))]

    for colour in COLOURS:
        for shape in SHAPES:
            others = {name: None for name in COLOURS if name != colour}
            yield Scene(colour, shape, one(others), one(SHAPES), one(PLACES), one(GROUNDS))


def drawn(scene: Scene) -> NDArray[np.uint8]:
    """The picture of a scene, uint8 [SIDE, SIDE, 3]."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    across, down = PLACES[scene.place]
    shade = 1 - 0.25 * (x * across + y * down + SIDE * (2 - across - down) / 2) / (2 * SIDE)
    picture = np.array(GROUNDS[scene.ground]) * shade[..., None]
    for shape, colour, radius, away in (
        (scene.shape, scene.colour, 0.3 * SIDE, -0.12 * SIDE),
        (scene.small_shape, scene.small_colour, 0.12 * SIDE, 0.34 * SIDE),
    ):
        u, v = (x - SIDE / 2 - away * across) / radius, (y - SIDE / 2 - away * down) / radius
        cover = np.clip(SHAPES[shape](u, v) * radius + 0.5, 0, 1)[..., None]  # edges are one pixel soft
        picture = picture * (1 - cover) + np.array(COLOURS[colour]) * cover
    pixels: NDArray[np.uint8] = np.round(picture).astype(np.uint8)
    return pixels


def write(folder: Path) -> None:
    """Write pictures, captions and conversations into a folder, which is made if it is not there."""
    (folder / "shapes").mkdir(parents=True, exist_ok=True)
    captions, conversations = [], []
    for number, scene in enumerate(scenes()):
        name = f"{number:02d}.png"
        Image.fromarray(drawn(scene)).save(folder / "shapes" / name, optimize=True)
        captions.append({"file_name": name, "short": scene.short, "long": scene.long})
        said = [text for turn in scene.turns() for text in turn]
        said[0] = f"<image>\n{said[0]}"
        speakers = ("human", "gpt") * len(scene.turns())
        talk = [{"from": who, "value": text} for who, text in zip(speakers, said, strict=True)]
        conversations.append({"id": f"{number:02d}", "image": name, "conversations": talk})
    (folder / "shapes" / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in captions))
    rows = ",\n".join(map(json.dumps, conversations))
    (folder / "shapes.conversations.json").write_text(f"[\n{rows}\n]\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
