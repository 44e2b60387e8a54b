"""Pictures for the stages that read files: scikit-image's photographs where it is installed, else coloured shapes."""

import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from reca_fast.models.bagel.tiny.photos import crops


def source() -> str:
    return "photographs of scikit-image" if find_spec("skimage") else "drawn shapes (scikit-image is not installed)"


def pictures(count: int, side: int) -> Iterator[Image.Image]:
    """`count` square RGB pictures of `side` pixels, always the same ones."""
    if find_spec("skimage"):
        yield from (picture for _, picture in crops("train", count, side))
    else:
        yield from (drawn(number, side) for number in range(count))


def drawn(number: int, side: int) -> Image.Image:
    """A few blurred ellipses and bars over a colour gradient, with some grain, as files of photographs have."""
    draw = random.Random(number)

    def colour() -> tuple[int, int, int]:
        return draw.randrange(256), draw.randrange(256), draw.randrange(256)

    across, down = Image.linear_gradient("L").resize((side, side)).rotate(90), Image.linear_gradient("L")
    picture = Image.composite(
        Image.new("RGB", (side, side), colour()), Image.new("RGB", (side, side), colour()), across
    )
    other = Image.new("RGB", (side, side), colour())
    picture = Image.composite(picture, other, down.resize((side, side)))
    pen = ImageDraw.Draw(picture)
    for _ in range(9):
        left, top = draw.randrange(side), draw.randrange(side)
        box = (left, top, left + draw.randrange(side // 8, side // 2), top + draw.randrange(side // 8, side // 2))
        (pen.ellipse if draw.random() < 0.5 else pen.rectangle)(box, fill=colour())
    grain = Image.effect_noise((side, side), 24).convert("RGB")  # not seeded; a twelfth of what is seen
    return Image.blend(picture.filter(ImageFilter.GaussianBlur(side / 256)), grain, 1 / 12)


def write(folder: Path, count: int, side: int) -> None:
    """The pictures as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures(count, side)):
        picture.save(folder / f"{number:04d}.png")
