"""Which way up a picture is meant to be seen: its EXIF orientation, read from the file without decoding pixels.

Pillow would decode a whole PNG, and allocate the pixels of a WebP, before it tells. A plan needs the answer in
microseconds.
"""

import re
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from reca_fast.data import png
from reca_fast.data.formats import DAMAGED, open_picture

TAG = 0x0112
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
FLIPS: dict[int, tuple[int, ...]] = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}


def exif_orientation(data: bytes) -> int:
    """The orientation of an encoded picture, from 1 (upright) to 8, as EXIF numbers them.

    It is looked for in the EXIF data first and then in the XMP data; a picture that has neither is upright. For TIFF
    the answer is always 1, because Pillow turns its pixels itself.
    """
    if data[:2] == b"\xff\xd8":
        found = _declared(*_in_jpeg(data))
    elif data.startswith(png.SIGNATURE):
        found = _declared(*png.orientation_blocks(data))
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        found = _declared(*_in_webp(data))
    elif data[4:8] == b"ftyp":
        found = _in_box_format(data)
    else:
        found = 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def seen(width: int, height: int, turn: int) -> tuple[int, int]:
    """The (width, height) that a picture has after `upright`, from the one it has before, or the other way round."""
    return (height, width) if turn >= 5 else (width, height)


def upright(image: Tensor, turn: int) -> Tensor:
    """uint8 [H, W, 3] turned and mirrored as the orientation `turn` asks. From 5 on, this swaps height and width."""
    if turn >= 5:
        image = image.transpose(0, 1)
    if turn in FLIPS:
        image = torch.flip(image, FLIPS[turn])
    return image.contiguous()


def _declared(exif: bytes, xmp: bytes) -> object:
    if exif:
        fields = Image.Exif()
        try:
            fields.load(exif)
            found = fields.get(TAG)
        except DAMAGED:
            found = None
        if found is not None:
            return found
    match = IN_XMP.search(xmp)
    return int(match[1]) if match else None


def _in_jpeg(data: bytes) -> tuple[bytes, bytes]:
    exif = xmp = b""
    for content in _app1_segments(data):
        if content.startswith(EXIF):
            exif += content[len(EXIF) :] if exif else content  # a long block goes on in the next segment
        elif content.startswith(XMP):
            xmp = content
    return exif, xmp


def _app1_segments(data: bytes) -> Iterator[bytes]:
    """The contents of a JPEG's APP1 segments, which hold EXIF and XMP, as far as they come before the pixels."""
    at = 2
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 3:
        marker = data[at + 1]
        if marker in (0xD9, 0xDA):  # end of the picture, start of its pixels
            return
        if marker == 0xFF:  # padding
            at += 1
        elif marker <= 1 or 0xD0 <= marker <= 0xD8:  # markers without content
            at += 2
        else:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            if marker == 0xE1:
                yield data[at + 4 : end]
            at = max(end, at + 4)


def _in_webp(data: bytes) -> tuple[bytes, bytes]:
    found, at = {b"EXIF": b"", b"XMP ": b""}, 12
    while at + 8 <= len(data):
        kind, length = bytes(data[at : at + 4]), int.from_bytes(data[at + 4 : at + 8], "little")
        if kind in found:
            found[kind] = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return found[b"EXIF"], found[b"XMP "]


def _in_box_format(data: bytes) -> object:
    """The orientation of an AVIF or HEIF. Pillow tells it without decoding, with the turns of the format added."""
    try:
        with open_picture(data) as picture:
            return picture.getexif().get(TAG)
    except DAMAGED:
        return None
