"""Pictures and files inside a page, so that it stays one file."""

import base64
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

MIME = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".svg": "image/svg+xml",
}
SMALL = 160
"""Pictures up to so many pixels a side stay as they are, bit for bit; photographs of that size cost little."""
QUALITY = 85


def embed(picture: Tensor | NDArray[np.uint8] | Path, *, longest: int | None = None) -> str:
    """A picture as the `src` of an image in a page: a data URI.

    Args:
        picture: uint8 [H, W, 3]; or a PNG, JPEG, WebP or SVG file, which is taken as it is.
        longest: a picture with a longer side than this, in pixels, is made smaller; and one that is no icon (`SMALL`)
            is stored as WebP with a little loss, at a tenth of the bytes. None keeps every pixel.

    Raises:
        KeyError: a file of another kind.
        OSError: a file that cannot be read.
    """
    if isinstance(picture, Path):
        return _uri(picture.read_bytes(), MIME[picture.suffix.lower()])
    pixels = picture.cpu().numpy() if isinstance(picture, Tensor) else picture
    image, out = Image.fromarray(pixels), io.BytesIO()
    if longest is None or max(image.size) <= SMALL:
        image.save(out, "PNG", optimize=True)
        return _uri(out.getvalue(), MIME[".png"])
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    image.save(out, "WEBP", quality=QUALITY)
    return _uri(out.getvalue(), MIME[".webp"])


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
