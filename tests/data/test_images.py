"""Pictures: the authors' resize rule and pixels, our faster ways to the same, and refusal of damaged files."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin
from safetensors.torch import load_file
from skimage import data as photos

from reca_fast.config import DataConfig, ResizeConfig
from reca_fast.data.formats import FORMATS, LACKING
from reca_fast.data.images import (
    blur,
    decode,
    fitted_size,
    patchify,
    picture_size,
    resize,
    to_model_range,
    write_png,
)
from reca_fast.data.records import BadImage
from tests.places import BAGEL

RECORDED = BAGEL / "recorded_pixels"


def encoded(picture: Image.Image, kind: str = "JPEG", **options) -> bytes:
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def photo(name: str = "astronaut") -> Image.Image:
    return Image.fromarray(getattr(photos, name)())


def as_authors_read(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size but holds next to no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 10)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("source", "vae", "vit"),
    [
        ((1024, 1024), (1024, 1024), (224, 224)),
        ((1920, 1080), (1024, 576), (224, 126)),
        ((800, 600), (800, 608), (224, 168)),
        ((640, 427), (768, 512), (224, 154)),
        ((1000, 999), (992, 992), (224, 224)),
        ((523, 517), (528, 512), (224, 224)),
        ((2000, 300), (1024, 160), (224, 28)),
        ((100, 1000), (96, 1024), (28, 224)),
    ],
)
def test_sizes_follow_the_authors_resize_rule(source: tuple[int, int], vae: tuple, vit: tuple) -> None:
    config = DataConfig()
    assert fitted_size(*source, config.target_resize) == vae
    assert fitted_size(*source, config.condition_resize) == vit


def test_resize_rule_caps_the_area() -> None:
    # 1000x1000 with a cap of 250,000: the ratio of areas, 1/4, scales the sides, as the authors have it.
    assert fitted_size(1000, 1000, ResizeConfig(1000, 100, 10, max_pixels=250_000)) == (250, 250)


@pytest.mark.parametrize("option", ["quality", "subsampling", "progressive", "keep_rgb"])
def test_jpegs_decode_to_the_authors_bits(option: str) -> None:
    options = {"quality": 30, "subsampling": 0, "progressive": True, "keep_rgb": True}
    data = encoded(photo("coffee"), **{option: options[option]})
    assert picture_size(data) == (600, 400)
    assert torch.equal(decode(data), as_authors_read(data))


def test_grey_and_cmyk_jpegs_decode_to_the_authors_bits() -> None:
    for mode in ("L", "CMYK"):
        data = encoded(photo().convert(mode))
        assert torch.equal(decode(data), as_authors_read(data)), mode


def test_transparency_lies_on_white() -> None:
    half = Image.new("RGBA", (8, 6), (200, 0, 0, 0))
    half.paste((10, 20, 30, 255), (0, 0, 4, 6))
    palette = Image.new("P", (8, 6), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.paste(0, (4, 0, 8, 6))
    grey = half.convert("LA")
    grey.putpixel((0, 0), (20, 255))
    pictures = [encoded(half, "PNG"), encoded(half, "WEBP", lossless=True), encoded(palette, "PNG", transparency=0)]
    pictures.append(encoded(grey, "PNG"))
    for data in pictures:
        image = decode(data)
        assert picture_size(data) == (8, 6)
        assert image.shape == (6, 8, 3)
        assert image[0, 0].tolist() in ([10, 20, 30], [20, 20, 20])
        assert image[0, 7].tolist() == [255, 255, 255]


def test_16_bit_grey_keeps_its_high_byte() -> None:
    ramp = (np.arange(256, dtype=np.uint16) * 256 + 7).reshape(16, 16)
    image = decode(encoded(Image.fromarray(ramp), "PNG"))
    assert torch.equal(image[..., 0].flatten(), torch.arange(256, dtype=torch.uint8))


# --- which way up


def as_seen(data: bytes) -> torch.Tensor:
    """As Pillow's own exif_transpose shows it."""
    return torch.from_numpy(np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")))


def exif_block(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_are_turned_as_their_exif_orientation_says(kind: str, turn: int) -> None:
    lossless = {"WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(photo("coffee").resize((60, 40)), kind, exif=exif_block(turn), **lossless)
    size = (40, 60) if turn >= 5 else (60, 40)
    assert picture_size(data) == size
    assert torch.equal(decode(data), as_seen(data))
    assert decode(data).is_contiguous()
    if kind != "TIFF":  # whose pixels Pillow turns whether asked or not
        assert picture_size(data, orientation="ignore") == (60, 40)
        assert decode(data, orientation="ignore").shape == (40, 60, 3)


def test_the_orientation_is_found_wherever_it_is_written() -> None:
    small = photo("coffee").resize((60, 40))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    jpeg = encoded(small)
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    with_xmp = jpeg[:2] + b"\xff\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]  # and a fill byte
    block = exif_block(6).tobytes()
    profile = PngImagePlugin.PngInfo()
    profile.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n", zip=True)
    document = PngImagePlugin.PngInfo()
    document.add_itxt("XML:com.adobe.xmp", xmp.decode())
    late = encoded(small, "PNG", exif=block)
    chunk = late.index(b"eXIf") - 4
    end = chunk + 12 + struct.unpack(">I", late[chunk : chunk + 4])[0]
    late = late[:chunk] + late[end:-12] + late[chunk:end] + late[-12:]  # behind the pixels
    pictures = {
        "XMP in a JPEG": with_xmp,
        "profile in a PNG": encoded(small, "PNG", pnginfo=profile),
        "XMP in a PNG": encoded(small, "PNG", pnginfo=document),
        "behind the pixels of a PNG": late,
        "XMP in a WebP": encoded(small, "WEBP", lossless=True, xmp=xmp),
    }
    for name, data in pictures.items():
        assert picture_size(data) == (40, 60), name
        assert torch.equal(decode(data), as_seen(data)), name


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense" * 9])
def test_damaged_exif_means_upright(block: bytes) -> None:
    data = encoded(photo("coffee").resize((60, 40)), exif=block)
    assert picture_size(data) == (60, 40)
    assert decode(data).shape == (40, 60, 3)
    assert picture_size(encoded(photo("coffee"), exif=exif_block(9))) == (600, 400)


# --- what else is read


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "QOI", "MPO"])
def test_other_formats_are_read_whatever_they_are_called(kind: str) -> None:
    data = encoded(photo("coffee").resize((60, 40)), kind)
    assert picture_size(data) == (60, 40)
    assert torch.equal(decode(data), as_authors_read(data))


@pytest.mark.skipif(not LACKING, reason="pillow-heif and pillow-jxl-plugin are both installed")
def test_what_a_plugin_would_read_is_said() -> None:
    first_bytes = {"HEIF": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "JXL": b"\xff\x0a\xfa\x1f"}
    for name, plugin in LACKING.items():
        with pytest.raises(BadImage, match=f"cannot read it without {plugin.package}"):
            picture_size(first_bytes[name] + bytes(100))
    assert not LACKING.keys() & set(FORMATS)


def test_programs_are_never_called() -> None:
    with pytest.raises(BadImage, match="not a readable picture"):  # Pillow would start Ghostscript
        decode(encoded(photo("coffee").resize((60, 40)), "EPS"))


def test_long_texts_in_a_png_do_not_matter() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "a red cup", zip=False)
    texts.add_text("workflow", "x" * 1_200_000, zip=True)  # Pillow refuses what grows to more than 1 MiB
    texts.add_itxt("prompt", "y" * 1_200_000, zip=True)
    picture = photo("coffee").resize((60, 40))
    data = encoded(picture, "PNG", pnginfo=texts, icc_profile=bytes(1_200_000))
    with pytest.raises(ValueError, match="too large"):
        Image.open(io.BytesIO(data))
    assert picture_size(data) == (60, 40)
    assert torch.equal(decode(data), torch.from_numpy(np.array(picture)))
    with pytest.raises(BadImage, match="damaged"):
        decode(data[:-3000])


def test_floating_point_and_32_bit_pictures_are_refused_not_clipped() -> None:
    for pixels in (np.full((8, 8), 0.5, np.float32), np.full((8, 8), 1 << 20, np.int32)):
        with pytest.raises(BadImage, match=r"floating point|more than 16 bits"):
            decode(encoded(Image.fromarray(pixels), "TIFF"))
    ramp = (np.arange(256, dtype=np.uint16) * 256 + 7).reshape(16, 16)
    for kind in ("TIFF", "PPM"):
        assert torch.equal(
            decode(encoded(Image.fromarray(ramp), kind))[..., 0].flatten(), torch.arange(256, dtype=torch.uint8)
        )


# --- damage


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_picture_is_refused(kind: str) -> None:
    data = encoded(photo(), kind)
    for cut in (len(data) // 2, len(data) - 1000):
        with pytest.raises(BadImage):
            decode(data[:cut])


def test_a_jpeg_cut_and_closed_again_is_refused() -> None:
    data = encoded(photo())
    with pytest.raises(BadImage, match="damaged"):  # Pillow would return it half grey
        decode(data[: len(data) // 2] + b"\xff\xd9")


def test_a_jpeg_with_all_its_pixels_is_read() -> None:
    data = encoded(photo())
    pixels, end = data[:-2], data[-2:]
    for odd in (pixels + b"\0\0\0\0" + end, pixels + b"odd" + end, pixels + bytes(3000), data + b"behind the end"):
        assert torch.equal(decode(odd), decode(data))
    half = data[: len(data) // 2]
    for cut in (half + bytes(30_000), half + bytes(30_000) + end):  # zeros pass for pixels
        with pytest.raises(BadImage, match="premature end"):
            decode(cut)


@pytest.mark.parametrize("data", [b"", b"no picture", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", png_header(0, 5)])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage, match="not a readable picture"):
        picture_size(data)


def test_a_bomb_is_refused_by_its_header() -> None:
    jpeg = bytearray(encoded(Image.new("RGB", (64, 64))))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    webp = bytearray(encoded(Image.new("RGBA", (64, 64)), "WEBP", exif=b"Exif\0\0"))
    assert webp[12:16] == b"VP8X" and picture_size(webp) == (64, 64)
    webp[24:30] = b"\xff\xff\0" * 2
    for data in (png_header(100_000, 100_000), bytes(jpeg), bytes(webp)):
        for read in (picture_size, decode):
            with pytest.raises(BadImage, match="max_image_pixels"):
                read(data)
    with pytest.raises(BadImage, match="101x100"):
        picture_size(png_header(101, 100), max_pixels=10_000)
    for shape in ((60_000_000, 1), (1, 65_536)):  # few pixels, but rows or columns that fill the memory
        with pytest.raises(BadImage, match="a side longer than 65535 pixels"):
            decode(png_header(*shape))
    assert picture_size(png_header(65_535, 1)) == (65_535, 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_the_limit_of_pixels_is_ours_not_pillows() -> None:
    for kind in ("PNG", "GIF"):
        data = encoded(Image.new("L", (10_000, 9_100)), kind)  # Pillow would warn from 89,478,485 pixels on
        assert picture_size(data, max_pixels=100_000_000) == (10_000, 9_100)
    assert picture_size(png_header(20_000, 19_000), max_pixels=400_000_000) == (20_000, 19_000)


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_fast_resize_is_within_60_dB_of_exact(name: str) -> None:
    # Measured: 71.6 to 81.9 dB for the four photos, three sizes each; no value is off by more than 2 of 255.
    image = torch.from_numpy(np.array(photo(name)))
    height, width, _ = image.shape
    for size in ((224, 154), (width * 3 // 5, height * 3 // 5), (width * 3 // 2, height * 3 // 2)):
        exact, fast = resize(image, size, "exact"), resize(image, size, "fast")
        assert fast.shape == exact.shape == (size[1], size[0], 3)
        assert fast.is_contiguous()
        error = (fast.double() - exact.double()).square().mean()
        assert 10 * torch.log10(255**2 / error) >= 60


def test_resize_to_its_own_size_does_nothing() -> None:
    image = torch.zeros(4, 6, 3, dtype=torch.uint8)
    assert resize(image, (6, 4), "fast") is resize(image, (6, 4), "exact") is image


def test_blur_has_the_width_that_was_asked_for() -> None:
    image = torch.zeros(33, 33, 3, dtype=torch.uint8)
    image[16, 16] = 255
    assert blur(image, 0) is image
    spot = blur(image, 2.0)[..., 0].double()
    offsets = torch.arange(33.0, dtype=torch.float64) - 16
    sigma = (spot.sum(0) @ offsets.square() / spot.sum()).sqrt()
    assert sigma == pytest.approx(2.0, rel=0.15)  # rounding to 255 levels cuts the tails


def test_patch_order_and_values() -> None:
    image = torch.arange(4 * 6 * 3, dtype=torch.uint8).reshape(4, 6, 3)
    patches = patchify(image, 2)
    assert patches.shape == (6, 12)
    expected = image[2:4, 4:6].flatten().float()  # the last patch: rows, columns, channels
    assert torch.equal(patches[5], (expected / 255 - 0.5) / 0.5)
    assert torch.equal(patchify(image, 2, torch.bfloat16), patches.bfloat16())


def test_all_256_values_have_the_authors_bits() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(16, 16, 1).expand(-1, -1, 3)
    authors = levels.permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)  # ToTensor, then Normalize
    assert torch.equal(to_model_range(levels), authors)
    assert to_model_range(levels).is_contiguous()
    assert to_model_range(levels, torch.bfloat16).dtype == torch.bfloat16


def test_exact_pixels_equal_the_recorded_run() -> None:
    inputs = load_file(RECORDED / "inputs.safetensors")
    settings = json.loads((RECORDED / "config.json").read_text())
    source = inputs["image.0.uint8_hwc"]

    def resized(name: str) -> torch.Tensor:
        rule = settings[name]
        rule = ResizeConfig(rule["max_image_size"], rule["min_image_size"], rule["image_stride"])
        return resize(source, fitted_size(source.shape[1], source.shape[0], rule), "exact")

    assert torch.equal(to_model_range(resized("image_transform_args")), inputs["image.0.vae_tensor"])
    vit = resized("vit_image_transform_args")
    assert torch.equal(to_model_range(vit), inputs["image.0.vit_tensor"])
    assert torch.equal(patchify(vit, 14), inputs["packed_vit_tokens"])


def test_a_png_that_could_not_be_written_whole_leaves_the_old_one(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.png"
    write_png(torch.full((4, 4, 3), 7, dtype=torch.uint8), path)
    assert decode(path.read_bytes()).unique().tolist() == [7]
    whole = path.read_bytes()

    def cut(_, file, **options) -> None:
        file.write_bytes(b"half of")
        raise OSError

    monkeypatch.setattr(Image.Image, "save", cut)
    with pytest.raises(OSError):
        write_png(torch.zeros((4, 4, 3), dtype=torch.uint8), path)
    assert path.read_bytes() == whole
