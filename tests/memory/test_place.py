"""The trainer keeps fp32 masters of what it trains, and the rest in the precision of the run."""

import pytest
import torch
from torch import nn

from reca_fast.memory.place import training_place


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_trained_weights_are_fp32_frozen_ones_as_they_compute(precision) -> None:
    model = nn.Linear(2, 3)
    model.weight.requires_grad_(False)
    place = training_place(precision, "meta")
    assert {name: place(name, p) for name, p in model.named_parameters()} == {
        "weight": (precision, "meta"),
        "bias": (torch.float32, "meta"),
    }
