"""`reca-fast verify --unchanged BASE EXPORT`: one flipped bit in what was frozen is found and named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reca_fast.verify.unchanged import same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

TRAINED = "language_model.model.layers.1.mlp_moe_gen.down_proj.weight"
FROZEN = {
    "understanding expert": "language_model.model.layers.1.mlp.down_proj.weight",
    "embeddings": "language_model.lm_head.weight",
    "connector": "connector.fc2.bias",
    "vision tower": "vit_model.vision_model.encoder.layers.0.mlp.fc1.weight",
    "position tables": "vit_pos_embed.pos_embed",
    "VAE": "encoder.conv_in.weight",
}
"""Part -> one of its tensors in the public files."""


@pytest.fixture(scope="module")
def base(tiny_folder, tmp_path_factory) -> Path:
    """A checkpoint in bf16, as the public one is."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("base") / "base"))
    weights = load_file(folder / "ema.safetensors")
    save_file({key: x.bfloat16() for key, x in weights.items()}, folder / "ema.safetensors")
    return folder


@pytest.fixture
def export(base, tmp_path) -> Callable[..., Path]:
    """export(change): a copy of the base with one trained tensor changed, and whatever `change` does to its tensors."""

    def make(change: Callable[[dict[str, Tensor]], object] = lambda tensors: None, file: str = "ema") -> Path:
        folder = Path(shutil.copytree(base, tmp_path / "export"))
        for name in {"ema", file}:
            tensors = {key: x.clone() for key, x in load_file(folder / f"{name}.safetensors").items()}
            if name == "ema":
                tensors[TRAINED] += 1
            if name == file:
                change(tensors)
            save_file(tensors, folder / f"{name}.safetensors")
        return folder

    return make


def flip_lowest_bit(tensor: Tensor) -> None:
    """Of the tensor's last number."""
    tensor.view(-1).view(torch.uint8)[-tensor.element_size()] ^= 1


def test_an_export_of_a_training_is_unchanged(base, export, reca_fast):
    said = reca_fast("verify", "--unchanged", base, export())
    assert said.code == 0 and said.err == "", said
    for part in FROZEN:
        assert f"\n{part}: " in f"\n{said.out}"
    assert said.out.count("byte-identical\n") == len(FROZEN)
    assert f"what is trained: 1 of 37 tensors differ from {base}\n" in said.out
    assert "logits of a fixed picture and text: [43, 312], bit-equal\n" in said.out
    assert said.out.endswith(f"understanding is unchanged, it is that of {base}.\n")


@pytest.mark.parametrize("part", FROZEN)
def test_one_flipped_bit_is_named(part, base, export, reca_fast):
    key = FROZEN[part]
    folder = export(lambda tensors: flip_lowest_bit(tensors[key]), "ae" if part == "VAE" else "ema")
    said = reca_fast("verify", "--unchanged", base, folder)
    assert said.code == 1 and said.err == "", said
    line = next(line for line in said.out.splitlines() if line.startswith(f"{part}: "))
    assert f"tensors DIFFER: {key} (number " in line and line.startswith(f"{part}: 1 of ")
    assert said.out.count("byte-identical\n") == len(FROZEN) - 1
    assert said.out.endswith(f"understanding is CHANGED: {part}.\n")


def test_a_tensor_of_another_shape_is_named(base, export, reca_fast):
    def crop(tensors: dict[str, Tensor]) -> None:
        tensors["connector.fc2.bias"] = tensors["connector.fc2.bias"][:-1].contiguous()
        del tensors["connector.fc1.bias"]

    said = reca_fast("verify", "--unchanged", base, export(crop))
    assert said.code == 1 and "connector: 2 of 4 tensors DIFFER: connector.fc1.bias (not there), " in said.out
    assert "connector.fc2.bias ([63] instead of [64])" in said.out and "not compared, the weights differ" in said.out


def test_the_same_numbers_in_a_wider_dtype_are_told_and_in_a_narrower_one_refused(base, export, reca_fast):
    def widen(tensors: dict[str, Tensor]) -> None:
        tensors.update({key: x.float() for key, x in tensors.items()})

    wide = export(widen)
    said = reca_fast("verify", "--unchanged", base, wide)
    assert said.code == 0 and said.out.count("the same numbers, stored as float32\n") == len(FROZEN) - 1
    assert "logits of a fixed picture and text: not compared, another dtype rounds otherwise" in said.out
    said = reca_fast("verify", "--unchanged", wide, base)
    assert said.code == 1 and "(rounded, bfloat16 instead of float32)" in said.out


def test_another_configuration_of_the_same_weights_shows_in_the_logits(base, export, reca_fast):
    folder = export()
    config = json.loads((folder / "llm_config.json").read_text())
    (folder / "llm_config.json").write_text(json.dumps(config | {"rope_theta": 10_000.0}))
    said = reca_fast("verify", "--unchanged", base, folder)
    assert said.code == 1 and "they DIFFER although all that is frozen is the same" in said.out
    assert said.out.endswith("understanding is CHANGED: logits.\n")


def test_an_export_without_training_is_told(base, reca_fast):
    assert (
        f"what is trained: 0 of 37 tensors differ from {base}\n" in reca_fast("verify", "--unchanged", base, base).out
    )


def test_folders_that_are_no_checkpoints_are_refused(base, reca_fast, tmp_path):
    assert "no checkpoint of a known model" in reca_fast("verify", "--unchanged", base, tmp_path).sentence
    assert "nowhere does not exist" in reca_fast("verify", "--unchanged", "nowhere", base).sentence


def test_bits_and_not_values_are_compared():
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    assert same_bits(nan, nan.clone()) and not same_bits(zero, -zero)
    assert not same_bits(zero, zero.double()) and not same_bits(zero, torch.zeros(2))
