"""Stochastic rounding to bf16."""

import math

import pytest
import torch

from reca_fast.optim.rounding import round_stochastically

LARGEST = torch.finfo(torch.float32).max


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("value", [0.1, -0.1, 1e-30, 1 + 2**-9, -3.0e38])
def test_the_mean_is_the_value(value):
    values = torch.full((200_000,), value)
    rounded = round_stochastically(values, generator())
    low, high = rounded.double().aminmax()
    assert low < high and low <= values[0] <= high  # neighbours on both sides
    error = rounded.double().mean() - values[0].double()
    assert abs(error) < 4 * (high - low) / 2 / math.sqrt(len(values))


def test_what_bf16_holds_stays():
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    rounded = round_stochastically(every.float(), generator())
    assert torch.equal(rounded[~every.isnan()].view(torch.int16), every[~every.isnan()].view(torch.int16))
    assert rounded[every.isnan()].isnan().all()


def test_a_finite_number_stays_finite():
    rounded = round_stochastically(torch.tensor([LARGEST, -LARGEST] * 50), generator())
    assert rounded.isfinite().all()
