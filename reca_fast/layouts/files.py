"""How a picture becomes a file: encoded as its ending says, four in a grid, and there at once or not at all."""

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from reca_fast.data.images import decode
from reca_fast.data.records import BadRecord
from reca_fast.errors import UserError, writing

FORMATS = {".png": "PNG", ".jpg": "JPEG"}
QUALITY = 75
"""Of JPEGs: Pillow's default, with which RECA's authors save theirs."""
PARTIAL = ".partial"
"""Folder in --out where files are written before they get their place. No evaluator looks there."""


def decoded(read: Callable[[], bytes], where: str) -> Tensor:
    """The pixels of the encoded picture that `read` gives, upright, uint8 [H, W, 3].

    Raises:
        UserError: it cannot be read, or is no picture; the message names `where`.
    """
    try:
        return decode(read())
    except BadRecord as bad:
        raise UserError(f"{where}: the picture to be edited cannot be read: {bad}.") from None


def encoded(pictures: Sequence[Tensor], ending: str) -> bytes:
    """The file of one picture, or of four as a grid: the first two above, the last two below.

    Args:
        pictures: uint8 [H, W, 3], on the CPU; four of them have one size.
        ending: .png or .jpg.
    """
    if len(pictures) == 4:
        rows = [torch.cat(list(pictures[start : start + 2]), dim=1) for start in (0, 2)]
        image = torch.cat(rows)
    else:
        (image,) = pictures
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, FORMATS[ending], **({"quality": QUALITY} if ending == ".jpg" else {}))
    return file.getvalue()


def write_whole(path: Path, data: bytes, out: Path) -> None:
    """Write a file so that it is there whole or not at all, whatever kills this process.

    Args:
        out: a folder above it, on the same disk, in which it is written first.

    Raises:
        UserError: it cannot be written.
    """
    partial = out / PARTIAL / f"{os.environ.get('RANK', '0')}-{os.getpid()}"
    with writing(path):
        for folder in (partial.parent, path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
