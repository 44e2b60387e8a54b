"""An MLP in chunks: the same gradients to rounding, and its wide rows never all there."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from reca_fast.config import MemoryConfig
from reca_fast.memory.chunk import chunk_mlps
from tests.memory.steps import batch_of, gradients, levered

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("recompute", ["none", "blocks", "selective"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_are_the_same_to_rounding(tiny_folder, recompute, precision):
    options = {"precision": precision, "freeze_und": recompute != "none"}
    loss, whole = gradients(tiny_folder, MemoryConfig(recompute=recompute), **options)
    again, chunked = gradients(tiny_folder, MemoryConfig(recompute=recompute, mlp_rows=7), **options)
    tolerance = 1e-5 if precision == "fp32" else 0.02
    assert again == pytest.approx(loss, rel=tolerance)
    assert chunked.keys() == whole.keys()
    for name, gradient in whole.items():
        assert gradient.any() and chunked[name].dtype == gradient.dtype
        assert (chunked[name] - gradient).norm() <= tolerance * gradient.norm(), name


class Frozen(nn.Module):
    """A block whose MLP is frozen and has a gradient passed through it."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8)).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(x)


def test_a_gradient_passes_through_a_frozen_mlp():
    block, x = Frozen(), torch.randn(5, 8, requires_grad=True)
    (whole,) = torch.autograd.grad(block(x).square().sum(), [x])
    chunk_mlps([block], 2)
    (chunked,) = torch.autograd.grad(block(x).square().sum(), [x])
    torch.testing.assert_close(chunked, whole)


HIDDEN, WIDE = 64, 96
"""Outer and inner width of the tiny MLPs."""


class Widest(TorchDispatchMode):
    """Notes how many rows the products have that are as wide as the MLP's inside; weights' gradients do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default and out.shape[1] == WIDE and out.shape[0] != HIDDEN:
            self.rows.add(out.shape[0])
        return out


def test_rows_are_wide_in_chunks_and_products_run_no_more_than_twice(tiny_folder):
    """With recomputation of blocks, chunks cost the second run of the last product, and nothing else."""
    levers = {"whole": MemoryConfig(recompute="blocks"), "chunked": MemoryConfig(recompute="blocks", mlp_rows=7)}
    widest, flops = {}, {}
    for name, config in levers.items():
        model = levered(tiny_folder, config)
        batch = model.encode(batch_of(model))
        with FlopCounterMode(display=False) as counter, Widest() as products:
            torch.stack(list(model.loss_sums(batch).values())).sum().backward()
        widest[name], flops[name] = max(products.rows), counter.get_total_flops()
    assert widest["chunked"] == 7 < widest["whole"]
    last_product = 2 * len(batch.gen_rows) * HIDDEN * WIDE * len(model.blocks())
    assert flops["chunked"] == flops["whole"] + last_product
