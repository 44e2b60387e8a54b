"""Block by block over all packs: the same losses and gradients as pack by pack, wherever weights and gradients live."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reca_fast.memory import HostWeights, on_host, recompute
from reca_fast.optim import Finished
from reca_fast.train.passes import LayerMajor, OnDevice, OnHost, PackMajor

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
DECIDED = Finished(0.1, torch.zeros(()), torch.ones(1, dtype=torch.bool))


class Batch(SimpleNamespace):
    def to(self, device: torch.device) -> "Batch":
        return self


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.frozen = nn.Linear(6, 6), nn.Linear(6, 6).requires_grad_(False)

    def forward(self, x: Tensor, side: tuple[Tensor, int], *, scale: float = 1.0) -> tuple[Tensor, None]:
        return x + scale * self.frozen(self.inner(x).tanh()) * side[0], None


class Network(nn.Module):
    """What autograd meets around blocks: a stem whose output goes to every block, something between two blocks, and a
    head that reads the stem and an earlier block's output as well.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.between, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.layers = nn.ModuleList(Block() for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x = stem = self.stem(x)
        side = stem.sigmoid()
        for number, layer in enumerate(self.layers):
            x, _ = layer(x, (side, 3), scale=0.5)
            if number == 1:
                early = x = self.between(x).relu()
        return self.head(x + early) * stem.mean(-1, keepdim=True)


class Model:
    """As much of a model as the passes use."""

    def __init__(self) -> None:
        self.module = Network()

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.module.layers)

    def encode(self, batch: Batch) -> Batch:
        return batch

    def loss_sums(self, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=batch.bf16):
            out = self.module(batch.x)
        return {"reca": out.float().square().sum()} | ({"t2i": out.sum()} if batch.also else {})


class Noted:
    """An update that notes what it is given and subtracts a tenth of the gradient."""

    def __init__(self, model: Any) -> None:
        blocks = [list(block.parameters()) for block in model.blocks()]
        inside = {id(p) for block in blocks for p in block}
        others = [p for p in model.module.parameters() if id(p) not in inside]
        trained = [[p for p in group if p.requires_grad] for group in (*blocks, others)]
        self.groups = [SimpleNamespace(parameters=group) for group in trained]
        self.measured: dict[int, list[Tensor]] = {}
        self.events: list[str] = []

    def measure(self, number: int, gradients: Sequence[Tensor]) -> None:
        self.events.append(f"measure {number}")
        self.measured[number] = [g.clone() for g in gradients]

    def decide(self, losses: Tensor) -> Finished:
        self.events.append("decide")
        return DECIDED

    def apply(self, number: int, gradients: Sequence[Tensor]) -> None:
        self.events.append(f"apply {number}")
        for parameter, gradient in zip(self.groups[number].parameters, gradients, strict=True):
            parameter.data.sub_(gradient, alpha=0.1)


def batches(bf16: bool = False) -> list[Batch]:
    draw = torch.Generator().manual_seed(1)
    return [Batch(x=torch.randn(n, 4, generator=draw), also=n == 3, bf16=bf16) for n in (2, 3, 5)]


def weigh(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([*parts.values()]).sum() / 7


def expected(bf16: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model = Model()
    sums = PackMajor(model, Noted(model), CPU).gradients(batches(bf16), weigh)
    return sums, {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}


def named(model: Model, update: Noted) -> dict[str, Tensor]:
    names = {id(p): name for name, p in model.module.named_parameters()}
    pairs = ((group.parameters, update.measured[number]) for number, group in enumerate(update.groups))
    return {names[id(p)]: g for parameters, gradients in pairs for p, g in zip(parameters, gradients, strict=True)}


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_sums_and_every_gradient_are_those_of_pack_by_pack(again: bool, bf16: bool) -> None:
    sums, gradients = expected(bf16)
    model = Model()
    if again:
        recompute(model.blocks())
    update = Noted(model)
    got = LayerMajor(model, update, CPU, OnDevice()).gradients(batches(bf16), weigh)
    assert got.keys() == sums.keys() and all(torch.equal(got[task], sums[task]) for task in sums)
    found = named(model, update)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (found[name] - gradient).norm() <= (1e-2 if bf16 else 1e-6) * gradient.norm(), name
    assert all(p.grad is None for p in model.module.parameters())


def test_a_block_s_gradient_is_complete_before_the_block_before_it_begins() -> None:
    model = Model()
    update = Noted(model)
    passes = LayerMajor(model, update, CPU, OnDevice())
    passes.gradients(batches(), weigh)
    assert update.events == [f"measure {n}" for n in (4, 3, 2, 1, 0, 5)]
    assert passes.update(torch.zeros(1)) is DECIDED
    assert update.events[6:] == ["decide", *(f"apply {n}" for n in range(6))]


def test_the_second_of_two_backward_passes_updates_as_it_goes() -> None:
    model = Model()
    update = Noted(model)
    passes = LayerMajor(model, update, CPU, None)
    passes.gradients(batches(), weigh)
    passes.update(torch.zeros(1))
    assert update.events[7:] == [f"apply {n}" for n in (4, 3, 2, 1, 0, 5)]


def after_a_step(*, keeper: str, frozen: bool = False, trained: int = 0) -> dict[str, Tensor]:
    """The weights after two steps."""
    model = Model()
    recompute(model.blocks())
    blocks, update = model.blocks(), Noted(model)
    hosted = [part if number < trained else [] for number, part in enumerate(on_host(blocks, trained=True))]
    keepers = {"device": OnDevice, "host": lambda: OnHost([g.parameters for g in update.groups], CPU)}
    passes = LayerMajor(
        model,
        update,
        CPU,
        keepers[keeper]() if keeper in keepers else None,
        frozen=HostWeights(on_host(blocks, trained=False), CPU) if frozen else None,
        trained=HostWeights(hosted, CPU) if trained else None,
    )
    for _ in range(2):
        passes.gradients(batches(), weigh)
        passes.update(torch.zeros(1))
    passes.settle()
    return {name: p.detach().clone() for name, p in model.module.named_parameters()}


@pytest.mark.parametrize("keeper", ["device", "host", "twice"])
@pytest.mark.parametrize(("frozen", "trained"), [(False, 0), (True, 0), (False, 5), (True, 3)])
def test_weights_are_the_same_wherever_everything_lives(keeper: str, frozen: bool, trained: int) -> None:
    plain = after_a_step(keeper="device")
    got = after_a_step(keeper=keeper, frozen=frozen, trained=trained)
    assert all(torch.equal(got[name], plain[name]) for name in plain)


def test_an_error_in_a_pack_comes_out_and_leaves_no_thread() -> None:
    import threading

    before = threading.active_count()
    model = Model()
    passes = LayerMajor(model, Noted(model), CPU, OnDevice())
    bad = batches()
    bad[1].x = torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        passes.gradients(bad, weigh)
    assert threading.active_count() == before


def test_a_model_that_leaves_a_block_out_is_told_so() -> None:
    model = Model()
    passes = LayerMajor(model, Noted(model), CPU, OnDevice())
    del model.module.layers[2]
    with pytest.raises(RuntimeError, match="calls each of its blocks once, in order"):
        passes.gradients(batches(), weigh)


def test_outside_of_a_step_a_block_runs_at_once_with_its_weights_on_the_device() -> None:
    model = Model()
    weights = HostWeights(on_host(model.blocks(), trained=True), CPU)
    layer: Any = model.blocks()[0].get_submodule("inner")
    home = layer.weight.data_ptr()
    LayerMajor(model, Noted(model), CPU, OnDevice(), trained=weights)
    seen: list[int] = []
    layer.register_forward_hook(lambda *_: seen.append(layer.weight.data_ptr()))
    with torch.no_grad():
        out = model.loss_sums(batches()[0])["reca"]
    assert torch.equal(out, Model().loss_sums(batches()[0])["reca"].detach())
    assert seen != [home] and layer.weight.data_ptr() == home
