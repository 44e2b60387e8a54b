"""Adapters: they begin as nothing, are all that is trained, and merge into the weights that they stand beside."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca_fast.config import LoraConfig, MemoryConfig, ModelConfig
from reca_fast.errors import UserError
from reca_fast.memory.adapters import MAGNITUDE, A, B, add_adapters, decays, fill_adapters, merged
from reca_fast.memory.place import training_place
from reca_fast.memory.quantize import quantize
from reca_fast.models import Model, published_model
from tests.memory.steps import gradients, levered

pytestmark = pytest.mark.usefixtures("one_thread")
LORA = LoraConfig(rank=4)
DORA = LoraConfig(rank=4, dora=True)


def learnt(model: Model) -> None:
    """As if adapters had been trained for a while."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if name.endswith(B):
                parameter.normal_(std=0.02, generator=draw)
            if name.endswith(MAGNITUDE):
                parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=draw))


@pytest.mark.parametrize("lora", [LORA, DORA], ids=["lora", "dora"])
def test_the_first_step_is_the_base_s_and_adapters_alone_learn(lora, tiny_folder) -> None:
    plain, _ = gradients(tiny_folder, MemoryConfig())
    loss, found = gradients(tiny_folder, MemoryConfig(), lora=lora)
    assert loss == pytest.approx(plain, rel=1e-5)
    kinds = (A, B, MAGNITUDE) if lora.dora else (A, B)
    assert len(found) == len(kinds) * 2 * 7  # layers and the linear layers of an expert
    assert all(name.endswith(kinds) and ".gen." in name for name in found)
    for name, gradient in found.items():  # of A it is zero as long as B is
        assert gradient.dtype == torch.float32 and bool(gradient.any()) != name.endswith(A), name


@pytest.mark.parametrize("rslora", [False, True], ids=["", "rslora"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("frozen", ["compute", "int8", "nf4"])
def test_the_merged_weight_computes_what_the_layers_do(frozen, dora, rslora) -> None:
    """To 1e-5 in fp32, beside weights of any form."""
    torch.manual_seed(0)
    linear = nn.Linear(96, 40)
    module = nn.ModuleDict({"linear": linear})
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    options = LoraConfig(rank=8, dora=dora, rslora=rslora)
    add_adapters(module, [module], options)
    quantize([module], frozen)
    layer: Any = module["linear"]
    if frozen != "compute":
        layer.base_layer.pack(weight)
        weight = layer.base_layer.weight
    fill_adapters(module, training_place(torch.float32, "cpu"), seed=0)
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
        if dora:
            layer.lora_magnitude_vector["default"].weight.mul_(torch.rand(40) + 0.5)
        x = torch.randn(5, 96)
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        ((name, change),) = merged(trained, options).items()
        assert name == "linear.weight" and not isinstance(change, Tensor)
        expected = F.linear(x, change(weight), bias)
        assert (layer(x) - expected).norm() < 1e-5 * expected.norm()
        assert (expected - F.linear(x, weight, bias)).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize("levers", [{"recompute": "blocks"}, {"frozen": "nf4"}], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_stay_under_other_levers(levers, precision, tiny_folder) -> None:
    """DoRA in fp32 without a lever, and the same adapters with one."""
    loss, expected = gradients(tiny_folder, MemoryConfig(), lora=DORA, prepare=learnt)
    again, found = gradients(tiny_folder, MemoryConfig(**levers), lora=DORA, prepare=learnt, precision=precision)
    off = 0.5 if "frozen" in levers else 0.06 if precision == "bf16" else 1e-5
    assert again == pytest.approx(loss, rel=off)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - gradient).norm() <= off * gradient.norm(), name


def test_what_a_draws_depends_on_the_seed_and_the_layer_alone(tiny_folder) -> None:
    one, two = (levered(tiny_folder, MemoryConfig(), lora=lora).module for lora in (LORA, DORA))
    first = one.get_parameter(f"layers.0.gen.q_proj.{A}")
    assert torch.equal(first, two.get_parameter(f"layers.0.gen.q_proj.{A}"))
    assert not torch.equal(first, one.get_parameter(f"layers.1.gen.q_proj.{A}"))


def test_weight_decay_acts_on_the_matrices_alone(tiny_folder) -> None:
    model = levered(tiny_folder, MemoryConfig(), lora=DORA)
    trained = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
    assert {name for name in trained if decays(model, name)} == {name for name, p in trained.items() if p.ndim == 2}


def test_targets_are_named_and_a_wrong_one_is_refused(tiny_folder) -> None:
    module = levered(tiny_folder, MemoryConfig(), lora=LoraConfig(rank=2, targets=("v_proj",))).module
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert trained == {f"layers.{i}.gen.v_proj.{part}" for i in range(2) for part in (A, B)}
    with pytest.raises(UserError, match=r"lora\.targets: .* 'v_projj', only down_proj, .* Did you mean 'v_proj'\?"):
        levered(tiny_folder, MemoryConfig(), lora=LoraConfig(rank=2, targets=("v_projj",)))


def test_at_the_public_size_adapters_are_small() -> None:
    model = published_model("BAGEL-7B-MoT", ModelConfig())
    add_adapters(model.module, model.blocks(), LoraConfig(rank=32))
    quantize(model.blocks(), "nf4")
    trained = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    packed = sum(
        p.nbytes for block in model.blocks() for n, p in block.named_parameters() if n.endswith((".data", ".scale"))
    )
    assert trained == 80_740_352
    assert packed / 1e9 == pytest.approx(7.2, abs=0.05)


@pytest.mark.slow
def test_sharded_adapters_learn_the_same(tiny_folder, mesh) -> None:
    levers = MemoryConfig(frozen="nf4")
    loss, expected = gradients(tiny_folder, levers, lora=DORA)
    again, found = gradients(tiny_folder, levers, mesh, lora=DORA)
    assert again == loss and found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [LORA, DORA], ids=["lora", "dora"])
def test_an_adapted_layer_is_traced_as_one_graph(lora) -> None:
    linear = nn.Linear(96, 40)
    module, weight = nn.ModuleDict({"linear": linear}), linear.weight.detach().clone()
    add_adapters(module, [module], lora)
    quantize([module], "nf4")
    layer: Any = module["linear"]
    layer.base_layer.pack(weight)
    fill_adapters(module, training_place(torch.float32, "cpu"), seed=0)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    x = torch.randn(5, 96)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).square().sum().backward()
    found = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    layer.zero_grad()
    layer(x).square().sum().backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, layer.get_parameter(name).grad, msg=name)
