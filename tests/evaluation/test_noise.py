"""Noise is told from pictures: white noise, and the smooth texture that a VAE makes of random latents."""

import numpy as np
import pytest
import torch
from torch import Tensor

from reca_fast.data.images import to_model_range
from reca_fast.evaluation.noise import is_noise, likeness
from reca_fast.evaluation.reconstruction import Reconstruction
from reca_fast.models.bagel.tiny.photos import crops

pytestmark = pytest.mark.usefixtures("one_thread")


def photographs(size: int) -> list[Tensor]:
    return [torch.from_numpy(np.array(crop)) for _, crop in crops("held_out", 6, size)]


def random_cells(size: int, cell: int) -> Tensor:
    """Noise whose grains are about `cell` pixels wide and smooth at their edges, as decoders give."""
    grains = torch.rand(1, 3, size // cell, size // cell, generator=torch.Generator().manual_seed(cell)) * 255
    return torch.nn.functional.interpolate(grains, size=(size, size), mode="bicubic").clamp(0, 255)[0].permute(1, 2, 0)


def judged(size: int, drawn: list[Tensor]) -> bool:
    pairs = zip(photographs(size), drawn, strict=False)
    return is_noise([Reconstruction("", original, picture.to(torch.uint8)) for original, picture in pairs])


@pytest.mark.parametrize(("size", "cell"), [(64, 1), (64, 4), (256, 8), (256, 16)])
def test_noise_of_any_grain_is_noise(size, cell) -> None:
    assert judged(size, [random_cells(size, cell)] * 6)


@pytest.mark.parametrize("size", [64, 256])
def test_pictures_are_no_noise(size) -> None:
    """Nor are blurred ones, half noisy ones, others than the originals, and pictures of one colour."""
    photos = photographs(size)
    assert not judged(size, photos)
    assert not judged(size, photos[::-1])
    assert not judged(size, [torch.full((size, size, 3), 128.0)] * 6)
    small = [torch.nn.functional.avg_pool2d(to_model_range(photo), 8) for photo in photos]
    blurred = [torch.nn.functional.interpolate(s[None], size=(size, size), mode="bilinear")[0] for s in small]
    assert not judged(size, [(b.permute(1, 2, 0) + 1) * 127.5 for b in blurred])
    assert not judged(size, [(photo.float() + random_cells(size, 1)) / 2 for photo in photos])


def test_originals_that_are_noise_tell_nothing() -> None:
    noise = random_cells(64, 1).to(torch.uint8)
    assert not is_noise([Reconstruction("", noise, noise)]) and not is_noise([])


def test_likeness_is_a_correlation_of_neighbours() -> None:
    ramp = torch.arange(64)[:, None, None].expand(64, 64, 3).to(torch.uint8)
    assert likeness([ramp], 1) == pytest.approx(1, abs=0.002)
    checkers = ((torch.arange(16)[:, None] + torch.arange(16)) % 2 * 255)[..., None].expand(-1, -1, 3).to(torch.uint8)
    assert likeness([checkers], 1) == pytest.approx(-1)
    assert likeness([checkers], 2) is None  # all cells are alike: flat
    assert likeness([checkers], 8) is None  # too few cells
