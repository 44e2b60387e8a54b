"""A checkpoint folder is read strictly: which file counts, and every fault of any of its files by name."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reca_fast.config import ModelConfig
from reca_fast.errors import UserError
from reca_fast.memory import fill_model
from reca_fast.models.bagel import BagelModel
from reca_fast.models.bagel.config import BagelConfig
from reca_fast.models.bagel.weights import weights_file
from tests.models.bagel.networks import filled

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_file_of_weights(tmp_path) -> None:
    """The only one that bears a name of the authors', or the one that is named."""
    (tmp_path / "ae.safetensors").touch()
    with pytest.raises(UserError, match=r"ema\.safetensors is missing, and so are model\.safetensors and model_bf16"):
        weights_file(tmp_path)
    (tmp_path / "mine.safetensors").touch()
    with pytest.raises(UserError, match=r"to read mine\.safetensors, name it with --model\.weights"):
        weights_file(tmp_path)
    for name in ("model_bf16.safetensors", "model.safetensors", "ema.safetensors"):
        (tmp_path / name).touch()
        assert weights_file(tmp_path) == tmp_path / name
        (tmp_path / name).unlink()
    assert weights_file(tmp_path, "mine.safetensors") == tmp_path / "mine.safetensors"
    assert weights_file(tmp_path, "/else/where.safetensors") == Path("/else/where.safetensors")
    for wrong in ("optimizer.00000-of-00008.pt", "model.safetensors.index.json", "a\0.safetensors"):
        with pytest.raises(
            UserError, match=rf"model\.weights={re.escape(repr(wrong))}: .* a single \.safetensors file"
        ):
            weights_file(tmp_path, wrong)


def test_of_several_files_one_must_be_named(copy, reca_fast) -> None:
    """A folder of the authors' trainer: the moving average, and the weights that were trained."""
    weights = load_file(copy / "ema.safetensors")
    save_file(weights | {"llm2vae.bias": weights["llm2vae.bias"] + 1}, copy / "model.safetensors")
    for verb in (["verify", copy], ["generate", "--model.path", copy, "--prompt", "x"]):
        said = reca_fast(*verb).sentence
        assert "holds ema.safetensors and model.safetensors: name the one to read with --model.weights" in said
    for name, shift in (("ema.safetensors", 0), ("model.safetensors", 1)):
        assert f"tensors in {name}" in reca_fast("verify", copy, "--weights", name).out
        model = BagelModel.open(ModelConfig(path=str(copy), weights=name, precision="fp32"))
        assert model.says_weights() == f"weights: {copy / name}" and copy / name in model.files()
        fill_model(model, torch.device("cpu"))
        assert torch.equal(model.module.llm2vae.bias, weights["llm2vae.bias"] + shift)
    assert "gone.safetensors is missing" in reca_fast("verify", copy, "--weights", "gone.safetensors").sentence


def test_released_file_alone(copy, reca_fast) -> None:
    os.rename(copy / "ema.safetensors", copy / "model_bf16.safetensors")
    assert "tensors in model_bf16.safetensors" in reca_fast("verify", copy).out


@pytest.mark.parametrize("name", ["llm_config.json", "vit_config.json", "ema.safetensors", "ae.safetensors"])
def test_a_missing_file_is_named(name, copy) -> None:
    (copy / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing"):
        BagelModel.check(copy)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("llm_config.json", "{", "llm_config.json cannot be read as JSON"),
        ("llm_config.json", "[]", "llm_config.json holds no JSON object"),
        ("vit_config.json", "{}", "vit_config.json lacks hidden_size"),
        ("llm_config.json", '{"hidden_act": "gelu"}', "llm_config.json lacks hidden_size"),
    ],
)
def test_broken_json_is_told_by_its_place(file, text, message, copy) -> None:
    (copy / file).write_text(text)
    with pytest.raises(UserError, match=message):
        filled(copy)


def test_numbers_that_are_none_are_named(copy) -> None:
    path = copy / "ema.safetensors"
    weights = load_file(path)
    weights["llm2vae.bias"][0], weights["connector.fc1.weight"][0, 0] = torch.nan, torch.inf
    save_file(weights, path)
    with pytest.raises(UserError, match=r"2 tensors hold NaN .* \(connector\.fc1\.weight, llm2vae\.bias\)"):
        BagelModel.check(copy)


def test_a_file_without_the_vision_tower_says_what_to_do(copy) -> None:
    path = copy / "ema.safetensors"
    save_file({key: x for key, x in load_file(path).items() if not key.startswith("vit_model.")}, path)
    with pytest.raises(UserError, match=r"was saved without vit_model\.\* .* copy these tensors into it from"):
        BagelModel.check(copy)


def test_a_whole_checkpoint_is_told_by_its_tensors(tiny_folder) -> None:
    tensors = len(load_file(tiny_folder / "ema.safetensors"))
    assert f"a whole BAGEL checkpoint, {tensors} tensors" in BagelModel.check(tiny_folder)


def test_a_link_to_nowhere_is_named(copy, reca_fast) -> None:
    """config.json and tokenizer.json need not be there, so a broken link must not pass for their absence."""
    for name in ("config.json", "tokenizer.json"):
        kept = (copy / name).read_bytes()
        (copy / name).unlink()
        (copy / name).symlink_to("../blobs/0123")
        assert f"{copy / name} is a link to ../blobs/0123, which is not there" in reca_fast("verify", copy).sentence
        (copy / name).unlink()
        (copy / name).write_bytes(kept)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("llm_config", {"rope_theta": None}, "llm_config.json lacks rope_theta; copy it from the public checkpoint"),
        ("llm_config", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling is {'rope_type': 'yarn'"),
        ("vit_config", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; a SigLIP vision tower has gelu_pytorch_tanh"),
        ("vit_config", {"patch_size": None}, "vit_config.json lacks patch_size; copy it from the public checkpoint"),
    ],
)
def test_settings_that_the_authors_read_otherwise(file, change, message, copy, reca_fast) -> None:
    """Without rope_theta their class takes 10,000, without patch_size 16; they scale positions when asked to."""
    path = copy / f"{file}.json"
    values = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    assert message in reca_fast("verify", copy).sentence


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json", "added_tokens.json"])
def test_a_tokenizer_larger_than_the_embedding(name, copy, reca_fast) -> None:
    """In whichever file: the authors' class reads others than ours."""
    rows = BagelConfig.from_folder(copy).llm.vocab_size
    file = json.loads((copy / name).read_text()) if (copy / name).exists() else {}
    {
        "tokenizer.json": lambda: file["model"]["vocab"].update(beyond=rows),
        "vocab.json": lambda: file.update(beyond=rows),
        "tokenizer_config.json": lambda: file["added_tokens_decoder"].update({str(rows): {"content": "beyond"}}),
        "added_tokens.json": lambda: file.update(beyond=rows),
    }[name]()
    (copy / name).write_text(json.dumps(file))
    said = reca_fast("verify", copy).sentence
    assert f"has ids up to {rows}, the embedding has {rows} rows" in said
    with pytest.raises(UserError, match=r"take the tokenizer, llm_config\.json and the weights from one checkpoint"):
        BagelModel.open(ModelConfig(path=str(copy)))
