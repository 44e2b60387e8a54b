"""Frozen layers of 8 and 4 bits: how far from the weights, what of them is kept, and that nothing else changes."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from reca_fast.config import MemoryConfig, ModelConfig
from reca_fast.memory import apply_levers, fill_model
from reca_fast.memory.quantize import Int8Linear, NF4Linear, QuantizedLinear, quantize
from reca_fast.models import open_model, published_model
from tests.memory.steps import gradients

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = [pytest.param(Int8Linear, 0.012, id="int8"), pytest.param(NF4Linear, 0.11, id="nf4")]


def packed(kind: type[QuantizedLinear], bias: bool = True) -> tuple[QuantizedLinear, Tensor]:
    """A layer and the weight that it was made of."""
    torch.manual_seed(0)
    layer, weight = kind(nn.Linear(96, 40, bias=bias).requires_grad_(False)), torch.randn(40, 96)
    layer.pack(weight)
    return layer, weight


@pytest.mark.parametrize(("kind", "error"), KINDS)
def test_the_weight_is_as_near_as_its_bits_allow(kind, error) -> None:
    layer, weight = packed(kind)
    assert 0 < (layer.weight - weight).norm() / weight.norm() < error
    assert layer.weight.shape == weight.shape


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("kind", "error"), KINDS)
def test_values_and_gradients_are_those_of_the_widened_weight(kind, error, bias) -> None:
    layer, _ = packed(kind, bias)
    x, again = (torch.randn(2, 7, 96, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    out, expected = layer(x), nn.functional.linear(again, layer.weight, layer.bias)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("kind", "error"), KINDS)
def test_nothing_wide_is_kept_for_the_backward_pass(kind, error) -> None:
    layer, _ = packed(kind)
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(torch.ones(3, 96, requires_grad=True))
    assert {t.data_ptr() for t in kept} <= {p.data_ptr() for p in layer.parameters()}


@pytest.mark.parametrize(("kind", "error"), KINDS)
def test_it_computes_in_the_dtype_of_autocast(kind, error) -> None:
    layer, _ = packed(kind)
    layer.bias = nn.Parameter(layer.bias.bfloat16(), requires_grad=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(3, 96)).dtype == torch.bfloat16


@pytest.mark.parametrize(("kind", "error"), KINDS)
def test_it_runs_without_numbers(kind, error) -> None:
    with FakeTensorMode():
        layer = kind(nn.Linear(96, 40).requires_grad_(False))
        layer.pack(torch.empty(40, 96, dtype=torch.bfloat16))
        x = torch.empty(5, 96, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad is not None and x.grad.shape == (5, 96)


def test_frozen_layers_of_the_blocks_alone_are_packed(tiny_folder) -> None:
    model = open_model(ModelConfig(str(tiny_folder)))
    apply_levers(model.module, model.blocks(), MemoryConfig(frozen="nf4"))
    fill_model(model, torch.device("cpu"))
    narrow = {name for name, part in model.module.named_modules() if isinstance(part, QuantizedLinear)}
    of_layers = (("q", "k", "v", "o", "gate", "up", "down"), ("q", "k", "v"))  # the last one has no more
    assert narrow == {f"layers.{i}.und.{name}_proj" for i, names in enumerate(of_layers) for name in names}
    assert model.module.layers[0].und.k_proj.bias.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in model.module.parameters() if p.requires_grad)


@pytest.mark.parametrize(("frozen", "gigabytes"), [("compute", 12.6), ("int8", 6.3), ("nf4", 3.55)])
def test_at_the_public_size_frozen_blocks_take(frozen, gigabytes) -> None:
    """Bytes of the understanding expert; the model is on the meta device."""
    model = published_model("BAGEL-7B-MoT", ModelConfig())
    quantize(model.blocks(), frozen)
    found = 0
    for block in model.blocks():
        packed = {id(part.get_parameter(n)) for part in block.modules() for n in getattr(part, "PACKED", ())}
        frozen_ones = [p for p in block.parameters() if not p.requires_grad]
        found += sum(p.numel() * (p.itemsize if id(p) in packed else 2) for p in frozen_ones)
    assert found / 1e9 == pytest.approx(gigabytes, abs=0.06)


@pytest.mark.parametrize("frozen", ["int8", "nf4"])
def test_losses_stay_near_and_every_trained_weight_learns(tiny_folder, frozen) -> None:
    loss, expected = gradients(tiny_folder, MemoryConfig())
    near, found = gradients(tiny_folder, MemoryConfig(frozen=frozen))
    assert found.keys() == expected.keys()
    assert near != loss and abs(near - loss) < 0.02 * loss
    for name, gradient in expected.items():
        assert bool(gradient.any()) == bool(found[name].any()), name


@pytest.mark.slow
def test_processes_hold_packed_weights_whole(tiny_folder, mesh) -> None:
    expected = gradients(tiny_folder, MemoryConfig(frozen="nf4"))
    loss, found = gradients(tiny_folder, MemoryConfig(frozen="nf4"), mesh=mesh)
    assert loss == expected[0]
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[1][name])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "error"), KINDS)
def test_it_is_traced_as_one_graph(kind, error) -> None:
    layer, _ = packed(kind)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for learns in (True, False):
        x, again = (torch.ones(3, 96, requires_grad=learns) for _ in range(2))
        torch.testing.assert_close(compiled(x), layer(again))
        if learns:
            compiled(x).sum().backward()
            layer(again).sum().backward()
            torch.testing.assert_close(x.grad, again.grad)
