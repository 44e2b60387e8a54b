"""The trainer keeps fp32 masters of what it trains, and the rest in the precision of the run."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from reca_fast.config import DrawingMemory, MemoryConfig, ModelConfig, SamplingConfig
from reca_fast.memory import fill_to_draw
from reca_fast.memory.place import training_place
from reca_fast.models import open_model, published_model
from reca_fast.sample import Sample, Text
from tests.memory.steps import batch_of, gradients, levered


class CastsNoted(TorchDispatchMode):
    """Notes every weight of which a copy in another dtype is made."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.weights = weights
        self.casts: list[tuple[tuple[int, ...], torch.dtype]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten._to_copy and args[0].data_ptr() in self.weights:
            self.casts.append((tuple(args[0].shape), out.dtype))
        return out


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_trained_weights_are_fp32_frozen_ones_as_they_compute(precision) -> None:
    model = nn.Linear(2, 3)
    model.weight.requires_grad_(False)
    place = training_place(precision, "meta")
    assert {name: place(name, p) for name, p in model.named_parameters()} == {
        "weight": (precision, "meta"),
        "bias": (torch.float32, "meta"),
    }


def test_trained_weights_may_be_as_narrow_as_the_arithmetic(tiny_folder) -> None:
    """No fp32 copy of a weight is left, and every gradient is that of fp32 as far as bf16 can tell."""
    loss, expected = gradients(tiny_folder, MemoryConfig(), precision="fp32")
    narrow, found = gradients(tiny_folder, MemoryConfig(trained="bf16"), precision="bf16")
    assert narrow == pytest.approx(loss, rel=0.02)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.dtype == torch.bfloat16, name
        assert (gradient.float() - expected[name]).norm() <= 0.05 * expected[name].norm(), name


def test_a_bf16_step_casts_no_weight(tiny_folder) -> None:
    model = levered(tiny_folder, MemoryConfig(trained="bf16"), precision="bf16")
    batch = model.encode(batch_of(model))
    with CastsNoted({p.data_ptr() for p in model.module.parameters()}) as noted:
        sum(model.loss_sums(batch).values()).backward()
    assert noted.casts == []


def test_what_only_draws_is_as_narrow_as_the_file(tiny_folder, tmp_path) -> None:
    """No weight is copied or cast, on its way into the model or while it draws: on a CPU all are views of the file."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "bf16"))
    narrow = {key: x.bfloat16() for key, x in load_file(folder / "ema.safetensors").items()}
    save_file(narrow, folder / "ema.safetensors")
    model = open_model(ModelConfig(str(folder)))
    fill_to_draw(model, torch.device("cpu"))
    assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16}
    with CastsNoted({p.data_ptr() for p in model.module.parameters()}) as noted:
        conditions = [Sample("0", (), None, None, Text((5, 6, 7)))]
        model.sample(conditions, [(32, 32)], SamplingConfig(steps=2, guidance=2.0), [0])
    assert noted.casts == []


def test_pictures_are_the_same_wherever_weights_live_while_they_are_drawn(tiny_folder) -> None:
    """In host memory: the same bit for bit. In 4 bits: others, but pictures."""
    drawn = {}
    for options in (DrawingMemory(), DrawingMemory(frozen_on="host"), DrawingMemory("nf4", "host")):
        model = open_model(ModelConfig(str(tiny_folder), precision="fp32"))
        fill_to_draw(model, torch.device("cpu"), options)
        conditions = [Sample("0", (), None, None, Text((5, 6, 7)))]
        (drawn[options.frozen, options.frozen_on],) = model.sample(
            conditions, [(32, 32)], SamplingConfig(steps=3, guidance=2.0), [0]
        )
    assert torch.equal(drawn["compute", "device"], drawn["compute", "host"])
    assert drawn["nf4", "host"].shape == (32, 32, 3)


def test_at_the_public_size_bf16_halves_what_is_trained() -> None:
    model = published_model("BAGEL-7B-MoT", ModelConfig())
    found = {}
    for trained in ("fp32", "bf16"):
        place = training_place(model.dtype, "meta", trained)
        parameters = [(name, p) for name, p in model.module.named_parameters() if p.requires_grad]
        found[trained] = sum(torch.empty_like(p, dtype=place(name, p).dtype).nbytes for name, p in parameters)
    assert found == {"fp32": 26_159_444_224, "bf16": 13_079_722_112}
