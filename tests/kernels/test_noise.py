"""Noise that a kernel makes from a seed: Philox's published words, standard normal, the same wherever it is made."""

import math

import pytest
import torch
from torch import Tensor

from reca_fast.kernels import flow_interpolate, flow_matching_loss
from reca_fast.kernels.common.noise import normal_noise, philox

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")

SEED = 2**62 + 12345


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=draw, dtype=torch.float64) * scale).to(dtype)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "digits of pi"],
)
def test_philox_has_the_published_words(counter, key, words) -> None:
    assert tuple(int(x) for x in philox(tuple(torch.tensor(c) for c in counter), key)) == words


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 7, 2**63 - 1])
def test_noise_is_standard_normal(seed) -> None:
    """Moments, tails and the Kolmogorov-Smirnov distance (0.1 % limit) of 2^17 numbers; neighbours do not correlate."""
    x = normal_noise(seed, 2048, 64, CPU).double()
    count = x.numel()
    assert x.mean().abs() < 4 / count**0.5
    assert (x.square().mean() - 1).abs() < 4 * (2 / count) ** 0.5
    assert (x.pow(3).mean()).abs() < 4 * (15 / count) ** 0.5
    assert (x.pow(4).mean() - 3).abs() < 4 * (96 / count) ** 0.5
    assert 3.8 < x.abs().max() < math.sqrt(50 * math.log(2)) + 1e-6
    ordered = torch.special.ndtr(x.flatten().sort().values)
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    assert max((ordered - steps[:-1]).max(), (steps[1:] - ordered).max()) < 1.95 / count**0.5
    for shift, dim in [(1, 0), (1, 1), (2, 1), (3, 1), (4, 1)]:
        assert (x * x.roll(shift, dim)).mean().abs() < 4 / count**0.5


def test_noise_depends_on_seed_token_and_channel_only() -> None:
    whole = normal_noise(SEED, 40, 64, CPU)
    assert torch.equal(normal_noise(SEED, 7, 13, CPU), whole[:7, :13])
    assert not (normal_noise(SEED + 1, 40, 64, CPU) == whole).any()
    assert not (normal_noise(SEED % 2**32, 40, 64, CPU) == whole).any(), "the seed has 64 bits"


@pytest.mark.parametrize("shape", [(37, 64), (5, 6), (3, 1), (2, 1500)], ids=str)
@pytest.mark.parametrize("seed", [0, 1, SEED])
def test_kernels_and_reference_make_the_same_noise(seed, shape, triton_kernels) -> None:
    noise = flow_interpolate(torch.zeros(shape), torch.ones(shape[0]), seed=seed)
    torch.testing.assert_close(noise, normal_noise(seed, *shape, CPU), atol=1e-6, rtol=0)


def test_both_functions_see_the_same_noise(triton_kernels) -> None:
    """The exact velocity has no loss: what the path ends in is what the loss subtracts."""
    latents, t = numbers(20, 24), torch.rand(20)
    noise = flow_interpolate(latents, torch.ones(20), seed=SEED)
    assert flow_matching_loss(noise - latents, latents, t, seed=SEED, reduction="none").max() < 1e-12
