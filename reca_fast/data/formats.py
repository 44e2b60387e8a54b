"""Which picture formats are read, and by which file names and first bytes they are told.

Formats have the names that Pillow gives them.
"""

import importlib
import io
import re
import struct
import warnings
import zlib
from importlib.util import find_spec
from typing import NamedTuple

from PIL import Image

Image.MAX_IMAGE_PIXELS = None  # `picture_size` checks: Pillow's own limit, a global, would warn and refuse below it
warnings.filterwarnings("ignore", module=r"PIL\.")  # what it thinks of odd metadata, in the middle of a progress bar

READ = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI", "TGA")
"""Formats that Pillow may open, by content and not by the name of the file. Others that it knows are left out: they
call other programs, hold only a header, or wrap a second picture whose size their own header does not tell.
"""


class Plugin(NamedTuple):
    """A package that makes Pillow read one more format."""

    package: str
    module: str
    register: str | None  # function of the module that tells Pillow of it; None where the import does
    endings: tuple[str, ...]
    signature: re.Pattern[bytes]  # of a file's first bytes


PLUGINS = {
    "HEIF": Plugin(
        "pillow-heif",
        "pillow_heif",
        "register_heif_opener",
        (".heic", ".heif", ".hif"),
        re.compile(rb"....ftyp(hei[csmx]|hev[cmsx]|mif1|msf1)", re.DOTALL),
    ),
    "JXL": Plugin(
        "pillow-jxl-plugin", "pillow_jxl", None, (".jxl",), re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n")
    ),
}
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
"""Every exception that Pillow raises on damaged bytes."""


def _available() -> list[str]:
    """The formats that Pillow reads on this machine. Plugins that are installed are registered on the way."""
    Image.init()
    found = [name for name in READ if name in Image.OPEN]
    for name, plugin in PLUGINS.items():
        if find_spec(plugin.module):
            module = importlib.import_module(plugin.module)
            if plugin.register:
                getattr(module, plugin.register)()
            found.append(name)
    return found


FORMATS = _available()
PICTURES = frozenset(e for e, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))
"""Endings of picture files, in lower case with their dot. (An MPO is a JPEG with a second picture behind it.)"""
LACKING = {name: plugin for name, plugin in PLUGINS.items() if name not in FORMATS}


def why_not_by_name(ending: str) -> str | None:
    """Why a file with this ending, which is a picture, is not read; None if this module knows no reason."""
    return next((_without(plugin) for plugin in LACKING.values() if ending in plugin.endings), None)


def why_not_by_content(data: bytes) -> str | None:
    """Why these bytes, which are a picture, are not read; None if this module knows no reason."""
    return next((_without(plugin) for plugin in LACKING.values() if plugin.signature.match(data)), None)


def _without(plugin: Plugin) -> str:
    return f"Pillow cannot read it without {plugin.package}"


def open_picture(data: bytes) -> Image.Image:
    """The picture with its header read, its pixels not yet decoded. Raises one of DAMAGED."""
    return Image.open(io.BytesIO(data), formats=FORMATS)
