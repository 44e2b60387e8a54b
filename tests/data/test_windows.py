"""How a picture becomes a square: cropped, squashed or padded, in the same bits as Pillow's where that is asked for."""

import io
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage import data as photos

from reca_fast.config import DataConfig, ResizeConfig
from reca_fast.data.images import fitted_size
from reca_fast.data.orientation import upright
from reca_fast.data.sources import Record
from reca_fast.data.windows import GREY, Window, before_turning, place_of_crop, resize_window, window_of
from tests.builders import builder_of
from tests.data.packs import SMALL

PHOTO = Image.fromarray(photos.coffee()).resize((150, 97))
SQUARE = 48
FITS = ("crop", "squash", "pad")


def as_the_authors_do(picture: Image.Image, fit: str, place: float, side: int = SQUARE) -> np.ndarray:
    """The square by whole pictures: cut or put on grey first, then resized at once."""
    short, long = sorted(picture.size)
    if fit == "crop":
        offset = int(place * (long - short + 1))
        left, top = (offset, 0) if picture.width > picture.height else (0, offset)
        picture = picture.crop((left, top, left + short, top + short))
    elif fit == "pad":
        square = Image.new("RGB", (long, long), (127,) * 3)
        square.paste(picture, ((long - picture.width) // 2, (long - picture.height) // 2))
        picture = square
    return np.array(picture.resize((side, side), Image.Resampling.BICUBIC)).astype(int)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(150, 97), (97, 150), (64, 64), (700, 3), (2, 700), (20, 30)])
def test_squares_are_those_of_cutting_or_padding_first(fit: str, size: tuple[int, int]) -> None:
    picture = PHOTO.resize(size)
    image, window = torch.from_numpy(np.array(picture)), window_of(*size, fit, 0.6)
    exact, fast = (resize_window(image, window, (SQUARE, SQUARE), method).numpy() for method in ("exact", "fast"))
    expected = as_the_authors_do(picture, fit, 0.6)
    assert np.array_equal(exact, expected)
    assert abs(fast.astype(int) - expected).max() <= 2


def test_a_window_is_where_its_fit_says() -> None:
    chance = random.Random(0)
    for _ in range(2000):
        width, height, fit = chance.randint(1, 3000), chance.randint(1, 3000), chance.choice((*FITS, "keep"))
        left, top, w, h = window_of(width, height, fit, chance.random())
        if fit == "crop":
            assert w == h == min(width, height)
            assert 0 <= left <= width - w and 0 <= top <= height - h
        elif fit == "pad":
            assert w == h == max(width, height)
            assert abs(w - width + 2 * left) <= 1 and abs(h - height + 2 * top) <= 1  # in the middle
        else:
            assert (left, top, w, h) == (0, 0, width, height)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_window_finds_the_same_pixels_before_turning(turn: int) -> None:
    lying = torch.arange(5 * 8 * 3, dtype=torch.uint8).view(5, 8, 3)
    shown = upright(lying, turn)
    height, width = shown.shape[:2]
    for window in (Window(1, 0, 3, 3), Window(0, 2, 2, 3), Window(width - 2, height - 1, 2, 1)):
        left, top, w, h = before_turning(window, width, height, turn)
        cut = shown[window.top : window.top + window.height, window.left : window.left + window.width]
        assert torch.equal(upright(lying[top : top + h, left : left + w], turn), cut)


def test_sizes_are_squares_of_max_size() -> None:
    chance = random.Random(0)
    for _ in range(2000):
        max_size, stride = chance.randint(1, 600), chance.randint(1, 32)
        rule = ResizeConfig(max_size, chance.randint(1, 900), stride, fit=chance.choice(FITS))
        w, h = fitted_size(chance.randint(1, 5000), chance.randint(1, 5000), rule)
        assert w == h and w % stride == 0 and abs(w - max_size) <= stride
        assert max_size % stride or w == max_size


@pytest.mark.parametrize("turn", [1, 3, 5, 6, 8])
@pytest.mark.parametrize("fit", FITS)
def test_photographs_become_squares_upright(turn: int, fit: str) -> None:
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = turn
    PHOTO.save(out, "PNG", exif=exif)
    record = Record("a.png", out.getvalue(), None)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(record.image)))
    rule = ResizeConfig(SQUARE, SQUARE, 16, fit=fit)
    for method, allowed in (("exact", 0), ("fast", 2)):
        builder = builder_of(replace(SMALL, target_resize=rule, resize=method))
        plan = builder.plan(0, record.key, builder.picture_size(record.image), None, 3)
        expected = as_the_authors_do(shown, fit, place_of_crop(SMALL.seed, 3, record.key))
        assert plan.picture.target == (SQUARE, SQUARE)
        assert abs(builder.build(record, plan).target.numpy() - expected).max() <= allowed


def test_condition_and_target_show_the_same_crop_and_epochs_show_others() -> None:
    out = io.BytesIO()
    ramp = np.linspace(0, 255, 640).astype(np.uint8)
    Image.fromarray(np.broadcast_to(ramp[None, :, None], (32, 640, 3)).copy()).save(out, "PNG")
    record = Record("a.png", out.getvalue(), None)
    squares = ResizeConfig(56, 56, 14, fit="crop"), ResizeConfig(64, 64, 16, fit="crop")
    builder = builder_of(replace(SMALL, condition_resize=squares[0], target_resize=squares[1]))
    seen = []
    for epoch in range(6):
        sample = builder.build(record, builder.plan(0, record.key, (640, 32), None, epoch))
        assert sample.condition.float().mean() == pytest.approx(sample.target.float().mean().item(), abs=1)
        seen.append(sample.target.float().mean().item())
    assert len({round(level) for level in seen}) > 3


def test_a_panorama_is_padded_without_the_memory_of_its_square() -> None:
    """Its square has 65,000 x 65,000 pixels, 12 GB: far more than what is allocated on the way."""
    image = torch.full((2, 65_000, 3), 200, dtype=torch.uint8)
    square = resize_window(image, window_of(65_000, 2, "pad", 0.0), (32, 32), "fast")
    assert (square == GREY).float().mean() > 0.9


def test_limits_of_the_shorter_side_do_not_bind_squares() -> None:
    builder_of(DataConfig(target_resize=ResizeConfig(64, 512, 16, fit="squash")))
