"""Checkpoint folders in the authors' layout and in that of transformers: what is read, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reca_fast.config import ModelConfig
from reca_fast.errors import UserError
from reca_fast.models import recognised
from reca_fast.models.files import uniform
from reca_fast.models.harmon import HarmonModel
from reca_fast.models.harmon.names import EMBEDDING, HEAD

WEIGHTS = "harmon_tiny.pth"


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    """A folder of one's own, in the authors' layout."""
    return Path(shutil.copytree(tiny, tmp_path / "harmon"))


def rewrite(folder: Path, change) -> None:
    """Change the dictionary of weights of a folder in the authors' layout."""
    weights = torch.load(folder / WEIGHTS, weights_only=True)
    torch.save(change(weights), folder / WEIGHTS)


def filled(folder: Path, **options) -> HarmonModel:
    model = HarmonModel.open(ModelConfig(path=str(folder), precision="fp32", **options))
    model.fill(uniform(torch.float32, "cpu"))
    model.fill_encoders(torch.device("cpu"))
    return model


def test_both_layouts_hold_the_same_model(tiny, tiny_hf) -> None:
    assert recognised(tiny) is recognised(tiny_hf) is HarmonModel
    first, second = filled(tiny), filled(tiny_hf)
    for name, parameter in first.module.named_parameters():
        assert torch.equal(parameter, second.module.get_parameter(name)), name
    for name, parameter in first.encoders.vae.named_parameters():
        assert torch.equal(parameter, second.encoders.vae.get_parameter(name)), name
    assert [path.name for path in first.files()][:3] == [WEIGHTS, "kl16.ckpt", "config.json"]
    assert [path.name for path in second.files()][:2] == ["model.safetensors", "config.json"]


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: {key: x for key, x in weights.items() if key != HEAD},
        lambda weights: {"state_dict": weights, "iteration": {"step": 3}},
        lambda weights: {key: x.bfloat16() for key, x in weights.items()},
    ],
    ids=["without its head", "in a wrapper", "bf16"],
)
def test_other_files_of_the_same_weights(change, copy, tiny) -> None:
    rewrite(copy, change)
    assert "a whole Harmon checkpoint" in HarmonModel.check(copy)
    first, second = filled(tiny), filled(copy)
    for name, parameter in first.module.named_parameters():
        torch.testing.assert_close(parameter, second.module.get_parameter(name), atol=0.05, rtol=0.02)


def drop(key: str):
    return lambda weights: {k: x for k, x in weights.items() if k != key}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop("mar.mask_token"), r"1 missing \(mar\.mask_token\)"),
        (lambda w: w | {"mar.odd": torch.zeros(1)}, r"1 unexpected \(mar\.odd\)"),
        (lambda w: w | {"mar.z_proj.weight": torch.zeros(3, 3)}, r"1 misshapen \(mar\.z_proj\.weight \[3, 3\] instead"),
        (lambda w: w | {HEAD: w[HEAD] + 1}, "Harmon's head is its embedding"),
        (lambda w: w | {HEAD: w[HEAD][:-1]}, "Harmon's head is its embedding"),
        (lambda w: w | {"proj_in.0.bias": w["proj_in.0.bias"] / 0}, "NaN or infinite"),
    ],
    ids=["missing", "unexpected", "misshapen", "another head", "a shorter head", "infinite"],
)
def test_wrong_weights_are_one_sentence(change, sentence, copy) -> None:
    rewrite(copy, change)
    with pytest.raises(UserError, match=sentence):
        HarmonModel.check(copy)


def test_the_vae_is_needed(copy) -> None:
    (copy / "kl16.ckpt").unlink()
    with pytest.raises(UserError, match=r"kl16\.ckpt is missing, the VAE"):
        filled(copy)


def test_several_files_of_weights_are_to_be_chosen_from(copy) -> None:
    shutil.copy(copy / WEIGHTS, copy / "harmon_other.pth")
    with pytest.raises(UserError, match=r"harmon_other\.pth and harmon_tiny\.pth: name the one to read"):
        HarmonModel.open(ModelConfig(path=str(copy)))
    assert filled(copy, weights="harmon_other.pth").weights.name == "harmon_other.pth"


@pytest.mark.parametrize("name", ["Harmon-1.5B-RecA.pth", "iter_5000.pth"])
def test_files_of_other_names_are_told_by_their_tensors(name, copy) -> None:
    (copy / WEIGHTS).rename(copy / name)
    assert recognised(copy) is HarmonModel and filled(copy).weights.name == name
    torch.save({"blocks.0.weight": torch.zeros(2, 2)}, copy / name)
    assert HarmonModel.recognises(copy) == name.startswith("Harmon")


def test_weights_of_another_model(copy) -> None:
    torch.save({"blocks.0.weight": torch.zeros(2, 2)}, copy / WEIGHTS)
    with pytest.raises(UserError, match=r"is no Harmon's: it holds no tensor mar\."):
        HarmonModel.open(ModelConfig(path=str(copy)))


def test_sizes_that_no_file_states_are_asked_for(copy) -> None:
    """The width of a head is in no tensor's shape; the public widths are known, others need a config.json."""
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match=r"encoder_num_heads, decoder_num_heads; put a config\.json"):
        HarmonModel.open(ModelConfig(path=str(copy)))


@pytest.mark.parametrize(
    ("section", "change", "sentence"),
    [
        ("llm", {"tie_word_embeddings": False}, "Harmon's head is its token embedding"),
        ("llm", {"num_attention_heads": 5}, "no even multiple of num_attention_heads 5"),
        ("mar", {"type": "mar_giant"}, r"mar\.type is .*mar_giant.*, not one of mar_base, mar_large, mar_huge"),
        ("mar", {"vae_stride": 8}, "the VAE makes 4 channels out of 4 pixels, and MAR takes 4 channels out of 8"),
        ("mar", {"encoder_num_heads": 5}, "encoder_embed_dim 32 is no multiple of encoder_num_heads 5"),
    ],
)
def test_a_config_that_contradicts_itself(section, change, sentence, copy) -> None:
    path = copy / "config.json"
    values = json.loads(path.read_text())
    values[section] |= change
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=sentence):
        HarmonModel.open(ModelConfig(path=str(copy)))


def test_weights_in_several_files_become_one_file(tiny_hf, tmp_path) -> None:
    folder = Path(shutil.copytree(tiny_hf, tmp_path / "sharded"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys, where = sorted(tensors), dict[str, str]()
    for number, part in enumerate((keys[::2], keys[1::2]), start=1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, folder / name)
        where |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert recognised(folder) is HarmonModel and "a whole Harmon checkpoint" in HarmonModel.check(folder)
    model, one = filled(folder), filled(tiny_hf)
    assert {part.file for part in model.frozen()} <= set(model.files())
    assert sum(len(part.keys) for part in model.frozen()) == sum(len(part.keys) for part in one.frozen())
    assert torch.equal(model.understanding(), one.understanding())
    assert model.export(tmp_path / "out", {}, None) == []
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == tensors.keys() and all(torch.equal(written[key], tensors[key]) for key in written)


@pytest.mark.parametrize("layout", ["authors", "transformers"])
def test_an_export_has_the_base_s_layout(layout, tiny, tiny_hf, tmp_path) -> None:
    base = {"authors": tiny, "transformers": tiny_hf}[layout]
    model = filled(base)
    trained = {name: p.detach() + 1 for name, p in model.module.named_parameters() if p.requires_grad}
    assert model.export(tmp_path / "out", trained, torch.bfloat16) == []
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in base.iterdir())
    if layout == "authors":
        written = torch.load(tmp_path / "out" / WEIGHTS, weights_only=True)
        before = torch.load(base / WEIGHTS, weights_only=True)
    else:
        written, before = (load_file(f / "model.safetensors") for f in (tmp_path / "out", base))
    assert {key: x.shape for key, x in written.items()} == {key: x.shape for key, x in before.items()}
    assert {x.dtype for x in written.values()} == {torch.bfloat16}
    assert torch.equal(written[HEAD], written[EMBEDDING])
    assert torch.equal(written["proj_in.0.bias"], (before["proj_in.0.bias"] + 1).bfloat16())
    assert torch.equal(written["mar.class_emb.weight"], before["mar.class_emb.weight"].bfloat16())
    assert "a whole Harmon checkpoint" in HarmonModel.check(tmp_path / "out")


def test_an_export_without_a_vae_is_refused(copy, tmp_path) -> None:
    model = filled(copy)
    (copy / "kl16.ckpt").unlink()
    with pytest.raises(UserError, match=r"kl16\.ckpt is missing"):
        model.export(tmp_path / "out", {}, None)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_weights_alone_is_no_harmon(tmp_path) -> None:
    save_file({"model.embed": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert not HarmonModel.recognises(tmp_path)
