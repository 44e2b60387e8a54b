"""Products in eight bits: gradients close to those of plain ones, the same training, refusals that say why."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from reca_fast.config import DataConfig, MemoryConfig, ModelConfig
from reca_fast.errors import UserError
from reca_fast.memory import apply_levers, convert_matmuls, fill_model
from reca_fast.models import Model, open_model
from reca_fast.models.bagel.tiny import write_tiny_checkpoint
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import RECA, Sample, Text

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
KINDS = ["int8", "fp8"]
ERROR = {"int8": 0.05, "fp8": 0.2}
"""kind -> largest relative error of a parameter's gradient."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_tiny_checkpoint(folder, hidden_size=64, intermediate_size=96, layers=1, vit_hidden_size=48, text_vocab=300)
    return folder


def model_of(folder, *, precision: str = "fp32", compiler: str = "aot_eager", **levers) -> Model:
    torch._dynamo.reset()
    model = open_model(ModelConfig(str(folder), precision=precision))
    apply_levers(model.module, model.blocks(), MemoryConfig(**levers), compiler=compiler)
    fill_model(model, CPU)
    torch.manual_seed(0)
    nn.init.normal_(model.module.llm2vae.weight, std=0.1)  # a head of zeros would hide what lies behind it
    return model


def batch_of(model: Model):
    draw = torch.Generator().manual_seed(0)
    pictures = [torch.randint(0, 256, (size, size, 3), generator=draw, dtype=torch.uint8) for size in (56, 80)]
    samples = [Sample(str(i), (RECA,), pictures[0], pictures[1], Text((5, 6, 7))) for i in range(2)]
    return model.encode(model.inputs(DataConfig()).collate(samples, draw_of_pack(1, 0, 0)))


def gradients(model: Model) -> dict[str, Tensor]:
    model.loss_sums(batch_of(model))[RECA].backward()
    return {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("kind", "precision"), [("int8", "fp32"), ("int8", "bf16"), ("fp8", "bf16")])
def test_every_gradient_is_near_the_plain_one_and_recomputed_to_the_bit(folder, kind, precision) -> None:
    plain = gradients(model_of(folder, precision=precision))
    rounded = gradients(model_of(folder, precision=precision, matmul=kind))
    again = gradients(model_of(folder, precision=precision, matmul=kind, recompute="blocks"))
    assert rounded.keys() == again.keys() == plain.keys()
    for name, wanted in plain.items():
        error = (rounded[name] - wanted).norm() / wanted.norm()
        assert error < ERROR[kind], (name, error)
        assert rounded[name].dtype == torch.float32
        assert torch.equal(again[name], rounded[name])
    inside = [name for name in plain if name.startswith("layers.0.gen.") and "proj.weight" in name]
    assert len(inside) == 7 and not any(torch.equal(rounded[name], plain[name]) for name in inside)


class Block(nn.Module):
    """Writes to a projection's output, as models do that have no other use for it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 48), nn.Linear(48, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()).add_(x)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_compiled_as_one_graph(kind) -> None:
    def gradients(**levers: bool) -> list[Tensor]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        block = Block()
        apply_levers(block, [block], MemoryConfig(matmul=kind, **levers), compiler="aot_eager")
        block(torch.randn(40, 32)).square().sum().backward()
        return [p.grad for p in block.parameters() if p.grad is not None]

    eager, compiled = gradients(), gradients(compile=True)
    assert len(eager) == 3
    for wanted, got in zip(eager, compiled, strict=True):
        torch.testing.assert_close(got, wanted)


def test_their_arithmetic_is_counted_also_without_numbers(folder) -> None:
    def flops(kind: str) -> int:
        model = model_of(folder, matmul=kind)
        batch = batch_of(model)
        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
            model.loss_sums(batch)[RECA].backward()
        return counter.get_total_flops()

    assert flops("int8") == flops("fp8") == flops("plain")


@pytest.mark.slow
def test_sixty_steps_end_where_plain_ones_do(tmp_path) -> None:
    """bench/levers.py takes two hundred, with every kind."""
    folder = tmp_path / "tiny"
    write_tiny_checkpoint(folder, hidden_size=32, intermediate_size=48, layers=1, vit_hidden_size=48, text_vocab=300)

    def loss_at_the_end(kind: str) -> float:
        """The mean over the last twenty of 60 steps, each with another noise and other times."""
        model = model_of(folder, matmul=kind)
        batch = batch_of(model)
        update = torch.optim.AdamW([p for p in model.module.parameters() if p.requires_grad], lr=1e-2, fused=True)
        losses = []
        for step in range(60):
            times = torch.sigmoid(torch.randn(2, generator=torch.Generator().manual_seed(step)))
            draws = batch.draws._replace(timesteps=times, noise_seed=step)
            loss = model.loss_sums(replace(batch, draws=draws))[RECA] / batch.counts[RECA]
            loss.backward()
            update.step()
            update.zero_grad()
            losses.append(loss.item())
        assert sum(losses[-20:]) / 20 < 0.95 * sum(losses[:5]) / 5
        return sum(losses[-20:]) / 20

    assert loss_at_the_end("int8") == pytest.approx(loss_at_the_end("plain"), rel=0.02)


@pytest.mark.parametrize("kind", ["int8"])
def test_a_number_that_is_not_finite_is_not_rounded_away(kind) -> None:
    layer = nn.Sequential(nn.Linear(32, 16))
    convert_matmuls([layer], kind, CPU)
    x = torch.ones(20, 32)
    x[3, 5] = torch.inf
    out = layer(x)
    assert not out[3].isfinite().any() and out[:3].isfinite().all() and out[4:].isfinite().all()


def test_few_rows_and_odd_sizes_are_multiplied_as_ever() -> None:
    """A trained expert without rows has to give gradients of zero."""
    layer = nn.Linear(32, 16)
    block = nn.Sequential(layer, nn.Linear(16, 10))
    convert_matmuls([block], "int8", CPU)
    assert [type(layer) is nn.Linear for layer in block] == [False, True]
    block(torch.ones(0, 32)).sum().backward()
    assert layer.weight.grad is not None and not layer.weight.grad.any()


@pytest.mark.parametrize(("kind", "capability"), [("fp8", (8, 6)), ("int8", (7, 0))])
def test_an_older_gpu_is_refused_by_name(kind, capability, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "RTX 1")
    with pytest.raises(UserError, match=f"memory.matmul={kind} needs a GPU .* and this is a RTX 1; set"):
        convert_matmuls([nn.Linear(16, 16)], kind, torch.device("cuda"))


def test_blocks_without_trained_layers_are_refused() -> None:
    with pytest.raises(UserError, match="blocks have none"):
        convert_matmuls([nn.Linear(16, 16).requires_grad_(False)], "int8", CPU)


def test_without_torchao_the_sentence_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(UserError, match=r"needs torchao.*pip install 'reca-fast\[levers\]'"):
        convert_matmuls([nn.Linear(16, 16)], "fp8", CPU)
