"""All levers together: the same numbers as without, in the one order in which they nest."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from reca_fast.config import MemoryConfig
from reca_fast.memory import apply_levers

pytestmark = pytest.mark.usefixtures("one_thread")


class Block(nn.Module):
    """Notes whether torch.compile is tracing it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).tanh() * (2.0 if torch.compiler.is_compiling() else 1.0)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def gradients(mesh: DeviceMesh | None = None, **levers: Any) -> dict[str, Tensor]:
    torch._dynamo.reset()
    model = Model()
    apply_levers(model, list(model.blocks), MemoryConfig(**levers), mesh=mesh, compiler="eager")
    model(torch.ones(5, 4)).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(isinstance(gradient, DTensor) == (mesh is not None) for gradient in found.values())
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in found.items()}


PULLED: list[dict[str, Any]] = [
    {"recompute": "blocks"},
    {"recompute": "selective", "keep_on": "host"},
]


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("levers", PULLED, ids=lambda levers: " ".join(map(str, levers.values())))
def test_levers_change_neither_names_nor_gradients(mesh, sharded, compile, levers):
    """The second run of a compiled block is compiled too: an eager one would compute other numbers here."""
    plain = gradients(compile=compile)
    pulled = gradients(mesh if sharded else None, compile=compile, **levers)
    assert pulled.keys() == plain.keys()
    for name, gradient in plain.items():
        assert torch.equal(pulled[name], gradient), name
    assert compile == (not torch.equal(plain["head.weight"], gradients()["head.weight"]))
