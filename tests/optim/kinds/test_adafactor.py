"""Adafactor is that of transformers, without what this one leaves out."""

import pytest
import torch

from reca_fast.optim.kinds import Now, Weight
from reca_fast.optim.kinds.adafactor import Adafactor


@pytest.mark.slow
def test_it_is_that_of_transformers_with_a_given_learning_rate():
    from transformers.optimization import Adafactor as Theirs

    torch.manual_seed(0)
    ours = [torch.randn(5, 7), torch.randn(3)]
    theirs = [torch.nn.Parameter(weight.clone()) for weight in ours]
    reference = Theirs(theirs, lr=0.1, scale_parameter=False, relative_step=False, weight_decay=0.2)
    kind = Adafactor()
    states = [kind.new_states(weight, lambda shape, dtype: torch.zeros(shape, dtype=dtype)) for weight in ours]
    for step in range(1, 5):
        gradients = [torch.randn(weight.shape) for weight in ours]
        for its, gradient in zip(theirs, gradients, strict=True):
            its.grad = gradient.clone()
        reference.step()
        weights = [Weight(*its, its[0]) for its in zip(ours, gradients, states, strict=True)]
        kind.step(weights, Now(0.1, 0.2, step, torch.zeros(())))
    for weight, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(weight, its.detach())
