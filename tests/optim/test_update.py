"""One update of the trained weights: AdamW, clipping, and steps whose numbers are not finite."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reca_fast.config import OptimConfig
from reca_fast.optim import AdamWUpdate, MovingAverage, SkippedSteps, clip_gradients

CONFIG = OptimConfig(lr=0.1, warmup_steps=0, weight_decay=0.1)
FINE = torch.tensor([1.0, 2.0])


def two_layers() -> nn.Module:
    """The first layer is frozen."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[0].requires_grad_(False)
    return module


def update_of(module: nn.Module, config: OptimConfig = CONFIG) -> AdamWUpdate:
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return AdamWUpdate(trained, lambda name: name.endswith("weight"), config, total_steps=10)


def backward(module: nn.Module) -> None:
    module(torch.ones(2, 3)).square().sum().backward()


def everything(module: nn.Module, update: AdamWUpdate) -> dict[str, Tensor]:
    """Copies of all weights and of all that the update keeps."""
    kept = {f"{kind}.{name}": t for kind, part in update.state().items() for name, t in part.items()}
    return {name: tensor.detach().clone() for name, tensor in (dict(module.named_parameters()) | kept).items()}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_it_is_adamw_on_the_trained_half_and_decays_what_decays():
    module, twin = two_layers(), two_layers()
    ours = update_of(module)
    groups = [{"params": [twin[1].weight], "weight_decay": 0.1}, {"params": [twin[1].bias], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95), eps=1e-15)
    frozen = module[0].weight.clone()
    for step in range(3):
        ours.begin(step)
        backward(module)
        assert ours.finish(FINE).applied
        theirs.zero_grad()
        backward(twin)
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        theirs.step()
    torch.testing.assert_close(module[1].weight, twin[1].weight)
    torch.testing.assert_close(module[1].bias, twin[1].bias)
    assert torch.equal(module[0].weight, frozen)
    assert {name for part in ours.state().values() for name in part} == {"1.weight", "1.bias"}


def test_gradients_of_several_packs_add_up_and_are_cleared():
    module = two_layers()
    update = update_of(module)
    update.begin(0)
    backward(module)
    once = module[1].weight.grad.clone()
    backward(module)
    assert torch.equal(module[1].weight.grad, 2 * once)
    finished = update.finish(FINE)
    assert finished.lr == 0.1 and finished.grad_norm > 0 and finished.finite.tolist() == [True] * 3
    assert all(p.grad is None for p in module.parameters())


BROKEN = {
    "a loss is NaN, the gradients are fine": (torch.tensor([1.0, math.nan]), None, [True, False, True]),
    "a loss is inf": (torch.tensor([math.inf, 1.0]), math.inf, [False, True, False]),
    "one number of a gradient is NaN": (FINE, math.nan, [True, True, False]),
    "one number of a gradient is inf": (FINE, -math.inf, [True, True, False]),
}


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
@pytest.mark.parametrize(("losses", "number", "finite"), BROKEN.values(), ids=BROKEN)
def test_a_step_that_is_not_finite_changes_nothing(losses, number, finite, max_grad_norm):
    module, twin = two_layers(), two_layers()
    config = OptimConfig(lr=0.1, warmup_steps=0, weight_decay=0.1, max_grad_norm=max_grad_norm)
    update, other = update_of(module, config), update_of(twin, config)
    for number_of_step in range(2):
        for model, its in ((module, update), (twin, other)):
            its.begin(number_of_step)
            backward(model)
            its.finish(FINE)
    before = everything(module, update)

    update.begin(2)
    backward(module)
    if number is not None:
        module[1].weight.grad[1, 2] = number
    finished = update.finish(losses)
    assert finished.finite.tolist() == finite and not finished.applied
    assert_equal(everything(module, update), before)
    assert all(p.grad is None for p in module.parameters())

    for model, its in ((module, update), (twin, other)):  # the next one is as if nothing had happened
        its.begin(3)
        backward(model)
        assert its.finish(FINE).applied
    assert_equal(everything(module, update), everything(twin, other))


def test_what_it_keeps_can_be_filled_in_place():
    module = two_layers()
    update = update_of(module)
    for step in range(2):
        update.begin(step)
        backward(module)
        update.finish(FINE)
    copied = copy.deepcopy(module)
    resumed = update_of(copied)
    for kind, part in resumed.state().items():
        for name, tensor in part.items():
            tensor.copy_(update.state()[kind][name])
    for model, its in ((module, update), (copied, resumed)):
        its.begin(2)
        backward(model)
        its.finish(FINE)
    assert_equal(everything(module, update), everything(copied, resumed))


class NoReading(TorchDispatchMode):
    """Refuses what makes the host wait for the device: reading a number of a tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host reads a number"
        return func(*args, **(kwargs or {}))


def test_the_host_reads_nothing():
    module = two_layers()
    update = update_of(module)
    average = MovingAverage({"weight": module[1].weight}, 0.5)
    skipped = SkippedSteps(limit=0)
    with NoReading():
        for step in range(3):
            update.begin(step)
            backward(module)
            finished = update.finish(FINE)
            average.update(finished.applied)
            skipped.note(step + 1, ("loss_reca", "loss_i2t", "grad_norm"), finished.finite)
        with pytest.raises(AssertionError, match="reads a number"):
            finished.grad_norm.item()
    assert skipped.read() == []


def test_gradients_are_clipped_to_the_global_norm():
    module = two_layers()
    for largest, expected in ((0.5, 0.5), (0.0, 5.0), (10.0, 5.0)):
        module[1].weight.grad = torch.zeros(3, 3)
        module[1].weight.grad[0, 0] = 3.0
        module[1].bias.grad = torch.tensor([4.0, 0.0, 0.0])
        assert clip_gradients(module.parameters(), largest).item() == 5.0
        norm = math.hypot(module[1].weight.grad.norm().item(), module[1].bias.grad.norm().item())
        assert norm == pytest.approx(expected, rel=1e-5)
