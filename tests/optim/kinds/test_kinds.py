"""What holds of every optimizer, wherever its states lie and whatever the dtype of the weights."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from reca_fast.config import OptimConfig
from reca_fast.errors import UserError
from reca_fast.optim import Update, open_update

FINE = torch.tensor([1.0])
KINDS = ["adamw", "muon", "adamw8bit", "adamw8bit_ao", "adamw4bit_ao", "adafactor"]
BYTES = {"adamw": 8.0, "muon": 4.0, "adamw8bit": 2.03, "adamw8bit_ao": 2.03, "adamw4bit_ao": 1.06, "adafactor": 0.07}
"""Kind -> bytes of states for each number of a matrix of 256 x 128, without what there is one of for each matrix."""

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
every_kind = pytest.mark.parametrize("kind", KINDS)


def layers(dtype: torch.dtype = torch.float32) -> Any:
    """Two matrices large enough to be quantised, and biases that are not."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 64, dtype=dtype), nn.Linear(64, 96, dtype=dtype))


def update_of(module: nn.Sequential, **options) -> Update:
    config = OptimConfig(**{"lr": 1e-2, "warmup_steps": 0, "weight_decay": 0.1} | options)
    parts = dict(module.named_parameters()), [module[0]], lambda name: name.endswith("weight")
    return open_update(*parts, config, total_steps=200, device="cpu")


def gradients(module: nn.Module, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=draw).to(p.dtype)


def steps(module: nn.Module, update: Update, which: Sequence[int]) -> None:
    for step in which:
        update.begin(step)
        gradients(module, step)
        assert update.finish(FINE).applied


def everything(module: nn.Module, update: Update) -> dict[str, Tensor]:
    kept = {f"{kind}.{name}": t for kind, part in update.state().items() for name, t in part.items()}
    return {name: tensor.detach().clone() for name, tensor in (dict(module.named_parameters()) | kept).items()}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    bytes_of = {name: tensor.contiguous().view(torch.uint8) for name, tensor in ours.items() if tensor.ndim}
    assert [n for n in bytes_of if not torch.equal(bytes_of[n], theirs[n].contiguous().view(torch.uint8))] == []
    assert [name for name in ours.keys() - bytes_of if not torch.equal(ours[name], theirs[name])] == []


@every_kind
@both_dtypes
def test_a_skipped_step_leaves_everything_as_it_was(kind, dtype):
    module = layers(dtype)
    update = update_of(module, kind=kind)
    steps(module, update, range(2))
    before = everything(module, update)
    for step, number in ((2, math.nan), (3, math.inf)):
        update.begin(step)
        gradients(module, step)
        module[0].weight.grad[3, 5] = number
        assert not update.finish(FINE).applied
    assert_equal(everything(module, update), before)
    steps(module, update, [4])
    assert not torch.equal(module[0].weight, before["0.weight"])


@every_kind
@both_dtypes
def test_states_on_the_host_and_a_resume_change_no_bit(kind, dtype):
    """The second of three steps is followed by a new start, whose states are filled from the old ones."""
    module = layers(dtype)
    update = update_of(module, kind=kind)
    steps(module, update, range(3))

    first = layers(dtype)
    begun = update_of(first, kind=kind, states="host")
    steps(first, begun, range(2))
    second = layers(dtype)
    second.load_state_dict(first.state_dict())
    resumed = update_of(second, kind=kind, states="host")
    for name, part in resumed.state().items():
        for key, tensor in part.items():
            tensor.copy_(begun.state()[name][key])
    steps(second, resumed, [2])
    assert_equal(everything(second, resumed), everything(module, update))


@every_kind
def test_states_take_as_many_bytes_as_are_promised(kind):
    weight = {"weight": nn.Parameter(torch.zeros(256, 128))}
    update = open_update(weight, [], lambda name: True, OptimConfig(kind=kind), 1, device="cpu")
    states = [part["weight"] for part in update.state().values()]
    size = sum(state.numel() * state.element_size() for state in states if state.ndim)
    assert size / (256 * 128) == pytest.approx(BYTES[kind], rel=0.4 if kind == "adafactor" else 0.01)


@every_kind
@pytest.mark.parametrize("states", ["device", "host"])
def test_a_step_runs_on_fake_tensors(kind, states):
    """So that memory can be planned by running it."""
    with FakeTensorMode():
        module = layers(torch.bfloat16)
        update = update_of(module, kind=kind, states=states)
        update.begin(0)
        for p in module.parameters():
            p.grad = torch.ones_like(p)
        assert update.finish(torch.ones(1)).grad_norm.shape == ()
        assert module[0].weight.dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.exhaustive)])
def test_losses_follow_those_of_adamw(kind, dtype):
    """200 steps of a regression whose loss falls to the noise of its data. Adafactor has no first moment and other
    second ones, so its way is another one; here it ends no higher.
    """
    expected, start = final_loss("adamw", torch.float32)
    loss, _ = final_loss(kind, dtype)
    assert expected < 0.1 * start
    assert loss <= 1.02 * expected
    if kind != "adafactor":
        assert loss == pytest.approx(expected, rel=0.02)


@functools.cache
def final_loss(kind: str, dtype: torch.dtype) -> tuple[float, float]:
    """Mean of the last 20 losses, and the first one."""
    module = layers(dtype)
    update = update_of(module, kind=kind, schedule="cosine", lr=3e-3, weight_decay=0.0)
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(128, 8, generator=draw) @ torch.randn(8, 96, generator=draw) / (8 * 128) ** 0.5
    losses = []
    for step in range(200):
        x = torch.randn(64, 128, generator=draw)
        y = x @ target + 0.2 * torch.randn(64, 96, generator=draw)
        update.begin(step)
        loss = (module(x.to(dtype)).float() - y).square().mean()
        loss.backward()
        update.finish(loss.detach().reshape(1))
        losses.append(loss.item())
    return sum(losses[-20:]) / 20, losses[0]


def test_muon_is_torchs_for_matrices_and_adamw_for_the_rest():
    """A matrix of fewer than 16 rows, like a table of scales, is no map between two spaces."""
    ours, theirs = (nn.ModuleList([nn.Linear(128, 64), nn.Linear(64, 8)]) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    update = update_of(ours, kind="muon", weight_decay=0.1, max_grad_norm=0)
    matrix, *others = theirs[0].weight, theirs[0].bias, theirs[1].weight, theirs[1].bias
    muon = torch.optim.Muon([matrix], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": [p], "weight_decay": 0.1 if p.ndim == 2 else 0.0} for p in others]
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-15)
    for step in range(3):
        update.begin(step)
        gradients(ours, step)
        gradients(theirs, step)
        assert update.finish(FINE).applied
        muon.step()
        adamw.step()
    for own, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, reference, rtol=1e-5, atol=1e-6)


def test_pages_need_a_gpu():
    with pytest.raises(
        UserError, match=r"paged_adamw8bit keeps moments in memory of an NVIDIA GPU's driver.*adamw8bit"
    ):
        update_of(layers(), kind="paged_adamw8bit")


@pytest.mark.parametrize(("kind", "library"), [("adamw8bit", "bitsandbytes"), ("adamw4bit_ao", "torchao")])
def test_a_missing_library_is_one_sentence(kind, library, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(UserError, match=rf"optim\.kind={kind} needs {library}.*reca-fast\[levers\]"):
        update_of(layers(), kind=kind)


def test_weights_without_a_gradient_do_not_jump_where_the_second_moment_is_rounded_to_nothing() -> None:
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    gradient = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    gradient[:, ::2] *= 3e-4
    config = OptimConfig(kind="adamw8bit_ao", lr=1e-3, warmup_steps=0)
    update = open_update({"w": weight}, [], lambda name: False, config, 10, device="cpu")
    for step in range(4):
        update.begin(step)
        weight.grad = gradient.clone() if step < 2 else torch.zeros_like(gradient)
        update.finish(torch.zeros(1))
    assert weight.abs().max() < 0.01  # four steps of 0.001
