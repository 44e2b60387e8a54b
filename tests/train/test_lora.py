"""A run of adapters beside NF4 weights (QLoRA): what it saves, how it goes on, and what its export holds."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from reca_fast.checkpoints import SavedWeights
from reca_fast.config import LoraConfig
from reca_fast.errors import UserError
from reca_fast.memory.adapters import MAGNITUDE, A, B
from tests.train.short_run import course, running

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick")]


@pytest.fixture(scope="module")
def taught(base, tmp_path_factory):
    """The base with a head that is not zero: behind such a one no adapter would learn."""
    folder = shutil.copytree(base, tmp_path_factory.mktemp("taught") / "checkpoint")
    weights = load_file(folder / "ema.safetensors")
    head = weights["llm2vae.weight"]
    head.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    save_file(weights, folder / "ema.safetensors")
    return folder


@pytest.fixture(scope="module")
def settings(configured, taught):
    def make(out):
        config = configured(out, False)
        config.model.path = str(taught)
        config.lora = LoraConfig(rank=4, alpha=8.0, dora=True)
        config.memory.frozen, config.memory.recompute, config.model.precision = "nf4", "blocks", "bf16"
        return config

    return make


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory, quick):
    out = tmp_path_factory.mktemp("qlora") / "run"
    running.train(settings(out))
    return out


def test_a_checkpoint_holds_adapters_alone_and_a_resumed_run_repeats_the_whole_one(run, settings, tmp_path) -> None:
    saved = SavedWeights(run / "checkpoints" / "step-0000003", "model")
    assert all(name.endswith((A, B, MAGNITUDE)) for name in saved) and len(saved) == 3 * 7
    again = shutil.copytree(run, tmp_path / "again")
    for step in (2, 3):
        shutil.rmtree(again / "checkpoints" / f"step-000000{step}")
    running.train(settings(again))
    assert course(again) == course(run)
    for name, tensor in SavedWeights(again / "checkpoints" / "step-0000003", "model").items():
        assert torch.equal(tensor, saved[name]), name


def test_an_export_holds_the_adapters_merged_into_the_base_s_own_weights(run, taught, reca_fast, tmp_path) -> None:
    """Into those of the file, not into their four bits; every other tensor stays as it is, byte for byte."""
    said = reca_fast("export", run, tmp_path / "out")
    assert said.code == 0, said
    assert "7 layers with adapters merged in" in said.out
    saved = SavedWeights(run / "checkpoints" / "step-0000003", "model")
    before, after = (load_file(folder / "ema.safetensors") for folder in (taught, tmp_path / "out"))
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all("_moe_gen" in key and key.endswith(".weight") and "_proj" in key for key in changed)
    key, name = "language_model.model.layers.0.self_attn.v_proj_moe_gen.weight", "layers.0.gen.v_proj."
    wide = before[key] + 8.0 / 4 * saved[name + B] @ saved[name + A]
    wide *= (saved[name + MAGNITUDE] / wide.norm(dim=1).clamp_min(1e-12))[:, None]
    torch.testing.assert_close(after[key], wide)
    assert (wide - before[key]).norm() > 1e-4 * wide.norm()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (
            {"memory.order": "layer", "memory.recompute": "blocks", "memory.swap": 1},
            r"lora\.rank=4 leaves nothing to swap",
        ),
        ({"memory.matmul": "int8"}, r"lora\.rank=4 leaves no trained layer for memory\.matmul"),
    ],
    ids=str,
)
def test_what_adapters_exclude_is_refused_by_name(setting, sentence, settings, tmp_path) -> None:
    config = settings(tmp_path / "run")
    for name, value in setting.items():
        group, leaf = name.split(".")
        setattr(getattr(config, group), leaf, value)
    with pytest.raises(UserError, match=sentence):
        running.train(config)
