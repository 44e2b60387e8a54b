"""Recomputing activations changes what is kept, not what comes out."""

import weakref
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from reca_fast.config import DataConfig, MemoryConfig, ModelConfig
from reca_fast.memory import fill_model, recompute, recompute_rest
from reca_fast.memory.choice import keep_narrow, keep_within
from reca_fast.models import open_model
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import RECA, Sample, Text
from tests.memory.steps import batch_of, levered


class Step(NamedTuple):
    """One small batch."""

    loss: float
    gradients: dict[str, torch.Tensor]
    kept: int  # bytes alive between the two passes, weights not counted
    flops: int
    said: list[str]


def _step(folder, *, freeze_und: bool, **levers: Any) -> Step:
    said: list[str] = []
    model = levered(folder, MemoryConfig(**levers), say=said.append, freeze_und=freeze_und)
    batch = model.encode(batch_of(model))
    with FlopCounterMode(display=False) as counter:
        with Made() as made:
            loss = torch.stack(list(model.loss_sums(batch).values())).sum()
        kept = made.alive()
        loss.backward()
    gradients = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
    return Step(loss.item(), gradients, kept, counter.get_total_flops(), said)


class Made(TorchDispatchMode):
    """Knows the memory of every tensor that was made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given, made = (
            {
                StorageWeakRef(x.untyped_storage()): x.untyped_storage().nbytes()
                for x in tree
                if isinstance(x, torch.Tensor)
            }
            for tree in (tree_leaves((args, kwargs)), tree_leaves(out))
        )
        self.sizes |= {place: size for place, size in made.items() if place not in given}  # views are not made
        return out

    def alive(self) -> int:
        return sum(size for place, size in self.sizes.items() if not place.expired())


@pytest.fixture(scope="module", params=[True, False], ids=["reca", "joint"])
def plain(request, tiny_folder) -> tuple[bool, Step]:
    """Whether the understanding side is frozen, and the step without recomputation."""
    return request.param, _step(tiny_folder, freeze_und=request.param, recompute="none")


@pytest.mark.parametrize("recompute", ["blocks", "selective"])
def test_same_loss_and_gradients_with_less_kept(tiny_folder, plain, recompute):
    freeze_und, full = plain
    step = _step(tiny_folder, freeze_und=freeze_und, recompute=recompute)
    assert step.loss == full.loss
    assert step.gradients.keys() == full.gradients.keys() and all(x.any() for x in full.gradients.values())
    assert all(torch.equal(step.gradients[name], gradient) for name, gradient in full.gradients.items())
    assert step.kept < full.kept / (2 if recompute == "blocks" else 1.25)
    assert step.flops > full.flops or (recompute == "selective" and not freeze_und)


def test_selective_computes_less_again_than_blocks(tiny_folder, plain):
    freeze_und, full = plain
    blocks, selective = (_step(tiny_folder, freeze_und=freeze_und, recompute=x) for x in ("blocks", "selective"))
    assert selective.flops - full.flops < 0.5 * (blocks.flops - full.flops)
    assert "gen.o_proj" in selective.said[0]
    assert "gate_proj" not in selective.said[0] or not freeze_und  # of few rows, wide ones are kept too


def test_a_budget_is_used_and_held(tiny_folder):
    """The more may be kept, the less is computed again, down to nothing; and what is said is what happens."""
    full = _step(tiny_folder, freeze_und=True, recompute="none")
    least = _step(tiny_folder, freeze_und=True, recompute="blocks")
    flops = [least.flops]
    for share in (0.1, 0.2, 0.3, 1.0):
        budget = share * full.kept / 2**30
        step = _step(tiny_folder, freeze_und=True, recompute="budget", budget_gib=budget)
        assert all(torch.equal(step.gradients[name], gradient) for name, gradient in full.gradients.items())
        # Beside the layers' memory stand what the parts before and behind them keep, as they do with every policy.
        assert step.kept <= budget * 2**30 + least.kept
        (said,) = step.said
        assert float(said.split()[-3]) * 1e12 == pytest.approx(step.flops - full.flops, rel=0.01)
        flops.append(step.flops)
    assert flops == sorted(flops, reverse=True) and len(set(flops)) == 5 and flops[-1] == full.flops


class Overwrites(nn.Module):
    """Sums go into the products' own memory, one of them after somebody has read the product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(8, 8, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x).add_(x)
        z = self.second(y.tanh())
        again = z.detach() * 2
        z.add_(y)
        return self.third((z * again).tanh()).tanh()


def test_a_result_that_is_overwritten_is_kept_as_it_is_read(one_thread):
    """Kept products that were added to are not added to again; those that were read before are not kept."""

    def run(rule: Any) -> tuple[list[torch.Tensor], list[str]]:
        torch.manual_seed(0)
        blocks = nn.ModuleList(Overwrites() for _ in range(2))
        said: list[str] = []
        if rule is not None:
            recompute_rest(blocks, rule, say=said.append)
        x = torch.randn(4, 8, requires_grad=True)
        blocks[1](blocks[0](x)).sum().backward()
        return [p.grad for p in (x, *blocks.parameters()) if p.grad is not None], said

    plain, _ = run(None)
    kept, said = run(keep_narrow)
    assert len(plain) == 7 and all(torch.equal(a, b) for a, b in zip(plain, kept, strict=True))
    assert "keeps first, third in 2 of 2 blocks" in said[0]


def test_a_longer_pack_is_decided_anew(one_thread):
    blocks = nn.ModuleList(Overwrites() for _ in range(2))
    said: list[str] = []
    recompute_rest(blocks, keep_within(2200), say=said.append)
    for rows in (8, 4, 8, 20, 64):
        blocks[1](blocks[0](torch.randn(rows, 8, requires_grad=True))).sum().backward()
    assert [line.split(":")[1] for line in said] == [
        " keeps everything in 1 of 2 blocks; first, third in 1 of 2 blocks",
        " keeps first in 1 of 2 blocks",
        " keeps the inputs of 2 blocks alone",
    ]


class Narrow(nn.Module):
    """A block of another kind, of one product."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.only(x).tanh().exp()


def test_blocks_of_two_kinds_share_one_budget(one_thread):
    """One of each kind is watched in the first pass; from the second on, what saves most is kept, whosoever's it is."""

    def run(rule: Any) -> tuple[list[list[Any]], list[str], list[int]]:
        torch.manual_seed(0)
        blocks = [Overwrites(), Overwrites(), Narrow(), Narrow(), Narrow()]
        said: list[str] = []
        if rule is not None:
            recompute_rest(blocks, rule, say=said.append)
        gradients, flops = [], []
        for rows in (4, 4, 8, 8):
            x = torch.randn(rows, 8, requires_grad=True)
            with FlopCounterMode(display=False) as counter:
                out = x
                for block in blocks:
                    out = block(out)
                out.sum().backward()
            gradients.append([p.grad for p in (x, *(p for block in blocks for p in block.parameters()))])
            for block in blocks:
                block.zero_grad()
            flops.append(counter.get_total_flops())
        return gradients, said, flops

    plain, _, least = run(None)
    for rule in (keep_narrow, keep_within(2200), keep_within(10_000)):
        kept, said, flops = run(rule)
        for ours, theirs in zip(kept, plain, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert flops[0] > flops[1] >= least[1] and flops[2] > flops[3] >= least[3]
    assert flops[1] == least[1] and flops[3] == least[3]  # with room for everything, nothing is computed again
    assert said[0].startswith("recompute: keeps everything in 2 of 2 blocks; everything in 3 of 3 blocks: ")


def test_no_narrow_copy_of_a_weight_outlives_its_product(tiny_folder):
    """Under bf16, recomputation leaves nothing of the layers' weights behind: 13 GB at BAGEL's size."""
    model = open_model(ModelConfig(str(tiny_folder), precision="bf16"))
    recompute(model.blocks())
    fill_model(model, torch.device("cpu"))
    weights = {p.data_ptr() for p in model.module.layers.parameters() if p.requires_grad and p.dim() == 2}
    narrow: list[Any] = []
    alive: list[Any] = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in weights:
                narrow.append(weakref.ref(out))
            return out

    last = model.module.llm2vae.register_forward_hook(
        lambda *_: alive.extend(copy for copy in narrow if copy() is not None)
    )
    picture = torch.zeros(56, 56, 3, dtype=torch.uint8)
    samples = [Sample("0", (RECA,), picture, picture[:48, :48], Text((5, 6, 7)))]
    batch = model.encode(model.inputs(DataConfig()).collate(samples, draw_of_pack(1, 0, 0)))
    with Copies():
        model.loss_sums(batch)
    last.remove()
    assert len(narrow) == len(weights) and not alive


class Counted(nn.Module):
    """A block that counts its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.runs = nn.Linear(2, 2), 0

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        self.runs += 1
        return self.inner(x).tanh() * scale


def test_a_block_runs_twice_where_gradients_are_wanted_and_once_elsewhere():
    block = Counted()
    recompute([block])
    block(torch.ones(3, 2), scale=2.0).sum().backward()
    assert block.runs == 2
    with torch.no_grad():
        block(torch.ones(3, 2))
    assert block.runs == 3


def test_parameters_keep_their_names():
    block = Counted()
    before = list(block.state_dict())
    recompute([block])
    assert list(block.state_dict()) == before == ["inner.weight", "inner.bias"]
