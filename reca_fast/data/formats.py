"""Which picture formats are read, by the names that Pillow has for them, and the endings of their files."""

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
"""What may be opened, whatever a file is called. Left out of Pillow's list: formats that call other programs, hold only
a header, or wrap a second picture whose size their own header does not tell.
"""


class Plugin(NamedTuple):
    """What makes Pillow read one more format."""

    package: str
    module: str
    register: str | None  # the function that makes it known, where importing the module does not
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
"""All that Pillow raises on damaged bytes."""


def _available() -> list[str]:
    """The formats that Pillow reads here, plugins registered."""
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
    """Why a file with this ending is not read although it is a picture."""
    return next((_without(plugin) for plugin in LACKING.values() if ending in plugin.endings), None)


def why_not_by_content(data: bytes) -> str | None:
    """Why these bytes are not read although they are a picture, whatever the file is called."""
    return next((_without(plugin) for plugin in LACKING.values() if plugin.signature.match(data)), None)


def _without(plugin: Plugin) -> str:
    return f"Pillow cannot read it without {plugin.package}"


def open_picture(data: bytes) -> Image.Image:
    """The picture with its header read, its pixels not yet decoded. Raises one of DAMAGED."""
    return Image.open(io.BytesIO(data), formats=FORMATS)
