"""Show-o folders as they are published: what is read, what is refused and in which words, what an export holds."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reca_fast.config import DataConfig, ModelConfig
from reca_fast.errors import UserError
from reca_fast.models import recognised
from reca_fast.models.files import uniform
from reca_fast.models.showo import ShowoModel

from .conftest import as_bin

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = "pytorch_model.safetensors"


def edit(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_is_recognised_and_checked(clip_folder, codes_folder) -> None:
    assert recognised(clip_folder) is recognised(codes_folder) is ShowoModel
    assert ShowoModel.check(clip_folder).startswith(f"{clip_folder}: a whole Showo checkpoint with CLIP, 45 tensors")
    assert "without CLIP, 41 tensors" in ShowoModel.check(codes_folder)


def test_unknown_settings_are_no_obstacle(own_copy) -> None:
    edit(own_copy, _diffusers_version="0.30.1", load_from_showo=False, llm_model_path="microsoft/phi-1_5", new=[1])
    assert "a whole Showo" in ShowoModel.check(own_copy)


def test_files_of_torch_save_hold_the_same_model(own_copy, clip_folder, opened) -> None:
    as_bin(own_copy / WEIGHTS)
    as_bin(own_copy / "magvitv2" / WEIGHTS)
    as_bin(own_copy / "clip" / "model.safetensors", **{"vision_model.embeddings.position_ids": torch.arange(17)[None]})
    ShowoModel.check(own_copy)
    theirs, ours = opened(clip_folder), opened(own_copy)
    assert all(path.suffix in (".bin", ".json") for path in ours.files() if "model" in path.name)
    for (name, a), b in zip(theirs.module.named_parameters(), ours.module.parameters(), strict=True):
        assert torch.equal(a, b), name
    picture = torch.randint(256, (56, 64, 3), dtype=torch.uint8)
    for a, b in zip(theirs.encode_condition(picture).values(), ours.encode_condition(picture).values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"_class_name": "Harmon"}, "describes a 'Harmon', not a Showo"),
        ({"vocab_size": 99}, "vocab_size is 99, but llm_vocab_size"),
        ({"mask_token_id": 5}, "mask_token_id is 5, not the last id"),
        ({"codebook_size": 255, "vocab_size": 512 + 10 + 255 + 1, "mask_token_id": None}, "no power of two"),
        ({"w_clip_vit": False}, "holds a mm_projector, the part behind CLIP"),
        ({"phi": {"qk_layernorm": False}}, "it describes another model"),
        ({"phi": {"hidden_size": 96, "intermediate_size": 96, "num_attention_heads": 4}}, "missing.*misshapen"),
        ({"num_vq_tokens": "many"}, "num_vq_tokens"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_sentence(own_copy, values, words) -> None:
    edit(own_copy, **values)
    with pytest.raises(UserError, match=words) as error:
        ShowoModel.check(own_copy)
    assert str(own_copy) in str(error.value) or "phi" in str(error.value)


def test_a_checkpoint_without_a_projector_is_told_from_one_with_clip(codes_folder, tmp_path) -> None:
    folder = Path(shutil.copytree(codes_folder, tmp_path / "showo"))
    edit(folder, w_clip_vit=True)
    (folder / "clip").mkdir()
    with pytest.raises(UserError, match="clip"):
        ShowoModel.check(folder)


@pytest.mark.parametrize("missing", ["config.json", WEIGHTS, "magvitv2", "clip"])
def test_a_missing_file_is_named(own_copy, missing) -> None:
    path = own_copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError) as error:
        ShowoModel.check(own_copy)
    assert missing.split(".")[0] in str(error.value)


def test_missing_unexpected_and_misshapen_tensors_are_named(own_copy) -> None:
    tensors = load_file(own_copy / WEIGHTS)
    tensors["showo.model.layers.0.more"] = tensors.pop("showo.model.layers.0.mlp.fc1.bias")
    tensors["showo.lm_head.bias"] = tensors["showo.lm_head.bias"][:-1].clone()
    save_file(tensors, own_copy / WEIGHTS)
    with pytest.raises(UserError, match=r"1 missing .*fc1.bias.*1 unexpected .*more.*1 misshapen .*lm_head.bias"):
        ShowoModel.check(own_copy)


def test_a_number_that_is_none_is_found(own_copy) -> None:
    tensors = load_file(own_copy / WEIGHTS)
    tensors["showo.lm_head.bias"][3] = torch.nan
    save_file(tensors, own_copy / WEIGHTS)
    with pytest.raises(UserError, match="NaN or infinite"):
        ShowoModel.check(own_copy)


def test_a_recipe_for_the_other_kind_is_refused(clip_folder, codes_folder) -> None:
    """It would train, at sizes and with a condition that its authors never took."""
    for folder, name, advice in (
        (codes_folder, "Show-o-CLIP-512", "the checkpoint reads codes. Take --config showo-vq"),
        (clip_folder, "Show-o-512", "the recipe reads codes. Take --config showo for"),
    ):
        with pytest.raises(UserError, match=advice):
            ShowoModel.open(ModelConfig(path=str(folder), name=name, freeze_und=False))
    ShowoModel.open(ModelConfig(path=str(clip_folder), name="Show-o-CLIP-256", freeze_und=False))


def test_settings_that_it_cannot_follow_are_refused(clip_folder, codes_folder) -> None:
    with pytest.raises(UserError, match=r"model\.freeze_und=true cannot be"):
        ShowoModel.open(ModelConfig(path=str(clip_folder))).fill(uniform(torch.float32, "cpu"))
    with pytest.raises(UserError, match=r"model\.condition=understanding needs a checkpoint with CLIP"):
        ShowoModel.open(ModelConfig(path=str(codes_folder), condition="understanding"))
    with pytest.raises(UserError, match=r"data\.target_resize\.stride is 12"):
        data = DataConfig()
        data.target_resize.stride = 12
        ShowoModel.open(ModelConfig(path=str(clip_folder), freeze_und=False)).inputs(data)


def test_an_export_has_the_published_names_whatever_the_base_was(own_copy, tmp_path) -> None:
    public = set(load_file(own_copy / WEIGHTS))
    as_bin(own_copy / WEIGHTS)
    (own_copy / "optimizer.pt").write_bytes(b"")
    model = ShowoModel.open(ModelConfig(path=str(own_copy), freeze_und=False))
    changed = {"lm_head.bias": torch.full((779,), 2.0)}
    assert model.export(tmp_path / "out", changed, torch.bfloat16) == ["optimizer.pt"]
    got = load_file(tmp_path / "out" / WEIGHTS)
    assert set(got) == public and {x.dtype for x in got.values()} == {torch.bfloat16}
    assert (got["showo.lm_head.bias"] == 2).all()
    assert (tmp_path / "out" / "config.json").read_bytes() == (own_copy / "config.json").read_bytes()
    assert "a whole Showo" in ShowoModel.check(tmp_path / "out")


def test_an_export_into_a_folder_with_files_is_refused(own_copy, clip_folder) -> None:
    with pytest.raises(UserError, match="not empty"):
        ShowoModel.open(ModelConfig(path=str(clip_folder))).export(own_copy, {}, None)
