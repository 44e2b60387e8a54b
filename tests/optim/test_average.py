"""The moving average of the trained weights."""

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from reca_fast.optim import MovingAverage


def test_it_follows_the_weights_and_stays_where_an_update_was_skipped():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5, 7))
    average = MovingAverage({"weight": weight}, 0.75)
    reference = [weight.detach().clone()]
    for applied in (True, False, True):
        with torch.no_grad():
            weight.add_(torch.randn(5, 7))
        average.update(torch.tensor(applied))
        if applied:
            get_ema_multi_avg_fn(0.75)(reference, [weight.detach()], None)
        assert torch.equal(average.average["weight"], reference[0])
