"""Small pictures for tiny models: random crops of the colour photographs that scikit-image ships inside its wheel.

Nothing is downloaded. There are eight usable photographs. The held-out split is made of two whole photographs, not of
halves of all eight: both halves of one photograph share light, colours and textures, and a model that had learnt those
by heart would look as if it generalised. The price is a harder test: no cat and no cup was ever seen in training.
"""

import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from reca_fast.errors import UserError

Split = Literal["train", "held_out"]

PHOTOS: dict[Split, tuple[str, ...]] = {
    "train": ("astronaut.png", "motorcycle_left.png", "rocket.jpg", "hubble_deep_field.jpg", "ihc.png", "retina.jpg"),
    "held_out": ("chelsea.png", "coffee.png"),
}
"""Portrait, workshop, launch site, galaxies, stained tissue, eye ground; a cat, a cup. All are free of restrictions."""

SMALLEST, LARGEST = 1.0, 4.0
"""The side of a crop before its resize, in units of the wanted size."""


def crops(split: Split, count: int, size: int = 64, seed: int = 0) -> Iterator[tuple[str, Image.Image]]:
    """`count` square RGB pictures of `size` pixels, each with a name that tells photograph, place, side and mirroring.

    The photographs take turns; place, scale and mirroring depend on (split, seed) alone. Raises UserError when
    scikit-image or one of its photographs is missing.
    """
    photos = [(Path(name).stem, _photo(name)) for name in PHOTOS[split]]
    draw = random.Random(f"{split} {seed}")
    for index in range(count):
        name, photo = photos[index % len(photos)]
        ratio = min(LARGEST, min(photo.size) / size)
        side = round(size * SMALLEST * (ratio / SMALLEST) ** draw.random())
        left, top = draw.randint(0, photo.width - side), draw.randint(0, photo.height - side)
        box = (left, top, left + side, top + side)
        crop = photo.resize((size, size), Image.Resampling.BICUBIC, box=box)
        mirrored = draw.random() < 0.5
        yield f"{index:04d}_{name}_x{left}_y{top}_s{side}{'_m' * mirrored}", ImageOps.mirror(crop) if mirrored else crop


def write_crops(folder: str | Path, split: Split, count: int, size: int = 64, seed: int = 0) -> list[Path]:
    """Write `crops` as PNG files into `folder` (created when absent); returns their paths in order."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, crop in crops(split, count, size, seed):
        paths.append(folder / f"{name}.png")
        crop.save(paths[-1])
    return paths


def _photo(name: str) -> Image.Image:
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise UserError("the photographs come with scikit-image; install it: pip install 'reca-fast[dev]'")
    path = Path(package.origin).parent / "data" / name
    if not path.is_file():
        raise UserError(f"this scikit-image does not ship {name}; reinstall it: pip install -U 'scikit-image>=0.25'")
    with Image.open(path) as photo:
        return photo.convert("RGB")
