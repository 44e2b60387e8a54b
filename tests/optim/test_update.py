"""One update of the trained weights: AdamW, clipping, and steps whose numbers are not finite."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reca_fast.config import OptimConfig
from reca_fast.optim import MovingAverage, SkippedSteps, Update, open_update

CONFIG = OptimConfig(lr=0.1, warmup_steps=0, weight_decay=0.1)
FINE = torch.tensor([1.0, 2.0])


def two_layers() -> nn.Module:
    """The first layer is frozen."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[0].requires_grad_(False)
    return module


def update_of(module: nn.Module, config: OptimConfig = CONFIG) -> Update:
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return open_update(trained, [module[1]], lambda name: name.endswith("weight"), config, total_steps=10, device="cpu")


def backward(module: nn.Module) -> None:
    module(torch.ones(2, 3)).square().sum().backward()


def everything(module: nn.Module, update: Update) -> dict[str, Tensor]:
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
        update = update_of(module, OptimConfig(warmup_steps=0, max_grad_norm=largest))
        update.begin(0)
        assert update.finish(FINE).grad_norm.item() == 5.0
        first_moments = [update.state()["exp_avg"][name] for name in ("1.weight", "1.bias")]
        norm = torch.stack([moment.norm() for moment in first_moments]).norm().item() / (1 - 0.9)
        assert norm == pytest.approx(expected, rel=1e-5)


def four_layers(dtype: torch.dtype = torch.float32) -> Any:
    """Two blocks, the layers 1 and 2."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))).to(dtype)


def update_of_blocks(module: Any, config: OptimConfig = CONFIG, seed: int = 0) -> Update:
    decays = lambda name: name.endswith("weight")  # noqa: E731
    parts = dict(module.named_parameters()), [module[1], module[2]], decays
    return open_update(*parts, config, total_steps=10, device="cpu", seed=seed)


def test_groups_are_updated_one_by_one_as_all_at_once():
    """Gradients are measured and applied in any order, and given from outside, as accumulated elsewhere."""
    module, twin = four_layers(), four_layers()
    ours, theirs = update_of_blocks(module), update_of_blocks(twin)
    assert [len(group.parameters) for group in ours.groups] == [2, 2, 4]
    for step in range(3):
        ours.begin(step)
        theirs.begin(step)
        for model in (module, twin):
            model(torch.ones(2, 8)).square().sum().backward()
        gradients = [[p.grad for p in group.parameters] for group in ours.groups]
        module.zero_grad(set_to_none=True)
        for number in (2, 0, 1):
            ours.measure(number, gradients[number])
        decided = ours.decide(FINE)
        for number in (1, 2, 0):
            ours.apply(number, gradients[number])
        assert torch.equal(decided.grad_norm, theirs.finish(FINE).grad_norm)
    assert_equal(everything(module, ours), everything(twin, theirs))


def test_the_norm_is_that_of_torch_to_the_last_bit():
    module = four_layers()
    update = update_of_blocks(module)
    update.begin(0)
    module(torch.ones(2, 8)).square().sum().backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in module.parameters()])
    assert torch.equal(update.finish(FINE).grad_norm, expected)


def test_a_parameter_without_a_gradient_is_left_out():
    module = four_layers()
    update = update_of_blocks(module)
    module(torch.ones(2, 8)).square().sum().backward()
    module[3].weight.grad = None
    before = module[3].weight.detach().clone()
    update.begin(0)
    assert update.finish(FINE).applied
    assert torch.equal(module[3].weight, before) and update.state()["step"]["3.weight"] == 0


def test_bf16_weights_take_small_updates_on_average_and_the_same_ones_when_resumed():
    """A constant learning rate of a hundredth of the distance of two bf16 numbers moves the mean, not most weights."""
    config = OptimConfig(lr=2**-7 / 100, warmup_steps=0, max_grad_norm=0.0)

    def after(steps: int, seed: int) -> tuple[Tensor, Update]:
        weight = nn.Parameter(torch.ones(10_000, dtype=torch.bfloat16))
        update = open_update({"weight": weight}, [], lambda name: False, config, 10, device="cpu", seed=seed)
        for step in range(steps):
            update.begin(step)
            update.measure(0, [-torch.ones(10_000)])
            update.decide(FINE)
            update.apply(0, [-torch.ones(10_000)])
        return weight.detach(), update

    one, _ = after(1, seed=0)
    assert set(one.tolist()) == {1.0, 1.0 + 2**-7}
    ten, update = after(10, seed=0)
    assert (ten.double().mean() - 1).item() == pytest.approx(10 * config.lr, rel=0.2)
    again, _ = after(10, seed=0)
    other, _ = after(10, seed=1)
    assert torch.equal(ten, again) and not torch.equal(ten, other)
    assert update.state()["exp_avg"]["weight"].dtype == torch.float32


def test_a_skipped_step_leaves_bf16_weights_as_they_were():
    module = four_layers(torch.bfloat16)
    update = update_of_blocks(module)
    before = everything(module, update)
    update.begin(0)
    module(torch.ones(2, 8, dtype=torch.bfloat16)).square().sum().backward()
    module[0].weight.grad[0, 0] = math.nan
    assert not update.finish(FINE).applied
    assert_equal(everything(module, update), before)
