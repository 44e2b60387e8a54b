"""The chunks of a PNG, read without Pillow, which refuses long texts and reads EXIF only after all pixels."""

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
UNUSED = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}  # texts of any length, such as a workflow, and colour profiles
MOST_TEXT = 1 << 20  # bytes that a compressed text may grow to


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of every complete chunk. The bytes from start to end include its length, kind and checksum."""
    start = len(SIGNATURE)
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            return
        yield kind, start, end
        start = end


def without_unused(data: bytes) -> bytes:
    """The PNG without the chunks of UNUSED kinds, which decoding does not need; `data` itself when it has none."""
    kept, copied = [], 0
    for kind, start, end in chunks(data):
        if kind in UNUSED:
            kept.append(data[copied:start])
            copied = end
    return b"".join([*kept, data[copied:]]) if kept else data


def orientation_blocks(data: bytes) -> tuple[bytes, bytes]:
    """The EXIF block and the XMP document of a PNG. Each is empty where the PNG has none."""
    exif = profile = xmp = b""
    for kind, start, end in chunks(data):
        content = data[start + 8 : end - 4] if kind == b"eXIf" or kind in UNUSED else b""
        if kind == b"eXIf":
            exif = content
        elif content.startswith(b"Raw profile type exif\0"):
            profile = _text(kind, content)
        elif content.startswith(b"XML:com.adobe.xmp\0"):
            xmp = _text(kind, content)
    if not exif and profile:  # ImageMagick's way: a name, a length and hexadecimal digits, each on lines of their own
        try:
            exif = bytes.fromhex(b"".join(profile.split(b"\n")[3:]).decode("ascii"))
        except ValueError:
            exif = b""
    return exif, xmp


def _text(kind: bytes, content: bytes) -> bytes:
    """The text of a text chunk, behind its keyword, decompressed. It is empty when damaged or longer than MOST_TEXT."""
    text = content.partition(b"\0")[2]
    compressed = kind == b"zTXt"
    if kind == b"iTXt":
        compressed = text[:1] == b"\1"
        text = text[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif compressed:
        text = text[1:]
    if not compressed:
        return text
    try:
        inflate = zlib.decompressobj()
        text = inflate.decompress(text, MOST_TEXT)
    except zlib.error:
        return b""
    return b"" if inflate.unconsumed_tail else text
