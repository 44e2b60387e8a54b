"""AdamW in fp32 is torch's, to the last bit."""

import torch

from reca_fast.config import OptimConfig
from reca_fast.optim.kinds import Now, Weight
from reca_fast.optim.kinds.adamw import AdamW


def test_it_is_torch_s_fused_adamw():
    torch.manual_seed(0)
    config = OptimConfig(betas=(0.9, 0.99), eps=1e-8)
    ours = [torch.randn(5, 7), torch.randn(3)]
    theirs = [torch.nn.Parameter(weight.clone()) for weight in ours]
    reference = torch.optim.AdamW(theirs, lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.2, fused=True)
    kind = AdamW(config)
    states = [kind.new_states(weight, lambda shape, dtype: torch.zeros(shape, dtype=dtype)) for weight in ours]
    for step in range(1, 4):
        gradients = [torch.randn(weight.shape) for weight in ours]
        weights = [Weight(*its, its[0]) for its in zip(ours, gradients, states, strict=True)]
        kind.step(weights, Now(0.1, 0.2, step, torch.zeros(())))
        for its, gradient in zip(theirs, gradients, strict=True):
            its.grad = gradient
        reference.step()
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
