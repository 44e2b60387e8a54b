"""Recomputing activations changes what is kept, not what comes out."""

import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from reca_fast.config import DataConfig, MemoryConfig, ModelConfig
from reca_fast.memory import apply_levers, fill_model, recompute
from reca_fast.models import open_model
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import RECA, Sample, Text


def _step(folder, *, freeze_und: bool, **levers: Any) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss, gradients and bytes kept for the backward pass of one small batch."""
    model = open_model(ModelConfig(str(folder), precision="fp32", freeze_und=freeze_und))
    apply_levers(model.module, model.blocks(), MemoryConfig(**levers))
    fill_model(model, torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    condition = torch.randint(0, 256, (56, 56, 3), generator=draw, dtype=torch.uint8)
    target = torch.randint(0, 256, (64, 64, 3), generator=draw, dtype=torch.uint8)
    samples = [Sample(str(i), (RECA,), condition, target, Text((5, 6, 7))) for i in range(2)]
    batch = model.encode(model.inputs(DataConfig()).collate(samples, draw_of_pack(1, 0, 0)))

    parameters = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.loss_sums(batch)[RECA]
    loss.backward()
    gradients = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
    return loss.item(), gradients, sum(kept.values())


@pytest.mark.parametrize("freeze_und", [True, False])
def test_same_loss_and_gradients_with_less_kept(tiny_folder, freeze_und):
    loss, gradients, kept = _step(tiny_folder, recompute="none", freeze_und=freeze_und)
    again, regained, kept_then = _step(tiny_folder, recompute="blocks", freeze_und=freeze_und)
    assert again == loss
    assert regained.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(regained[name], gradient, rtol=0, atol=0)
    assert kept_then < kept / 2


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
