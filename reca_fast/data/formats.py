"""Which picture formats are read, by the names that Pillow has for them, and the endings of their files."""

import importlib
import io
import struct
import warnings
import zlib
from importlib.util import find_spec

from PIL import Image

Image.MAX_IMAGE_PIXELS = None  # `picture_size` checks: Pillow's own limit, a global, would warn and refuse below it
warnings.filterwarnings("ignore", module=r"PIL\.")  # what it thinks of odd metadata, in the middle of a progress bar

READ = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI", "TGA")
"""What may be opened, whatever a file is called. Left out of Pillow's list: formats that call other programs, hold only
a header, or wrap a second picture whose size their own header does not tell.
"""
PLUGINS = {
    "HEIF": ("pillow-heif", "pillow_heif", "register_heif_opener", (".heic", ".heif", ".hif")),
    "JXL": ("pillow-jxl-plugin", "pillow_jxl", None, (".jxl",)),
}
"""Formats that Pillow reads with a plugin: (its package, its module, the function that registers it, endings)."""
DAMAGED = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""All that Pillow raises on damaged bytes."""


def _available() -> list[str]:
    """The formats that Pillow reads here, plugins registered."""
    Image.init()
    found = [name for name in READ if name in Image.OPEN]
    for name, (_, module, register, _) in PLUGINS.items():
        if find_spec(module):
            plugin = importlib.import_module(module)
            if register:
                getattr(plugin, register)()
            found.append(name)
    return found


FORMATS = _available()
PICTURES = frozenset(e for e, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))
"""Endings of picture files, in lower case with their dot. (An MPO is a JPEG with a second picture behind it.)"""
LACKING = {
    ending: f"Pillow cannot read it without {package}"
    for name, (package, _, _, endings) in PLUGINS.items()
    for ending in endings
    if name not in FORMATS
}
"""Endings of pictures that a plugin would read -> why they are not read."""


def open_picture(data: bytes) -> Image.Image:
    """The picture with its header read, its pixels not yet decoded. Raises one of DAMAGED."""
    return Image.open(io.BytesIO(data), formats=FORMATS)
