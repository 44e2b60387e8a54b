"""Checkpoint folders: the authors' file on the public models, in all their layouts, read strictly and written again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reca_fast.config import ModelConfig
from reca_fast.errors import UserError
from reca_fast.models import open_model
from reca_fast.models.files.joined import hub_files
from reca_fast.models.openuni import OpenUniModel
from reca_fast.models.openuni.names import NETWORK_NAMES
from reca_fast.models.parts.lean_import import lean_import

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    """A stage 1 folder of one's own."""
    return Path(shutil.copytree(tiny, tmp_path / "folder"))


def own(folder: Path) -> Path:
    (path,) = folder.glob("openuni_*")
    return path


def tensors(model: OpenUniModel) -> dict[str, torch.Tensor]:
    parts = {"module": model.module, "vit": model.encoders.vit, "vae": model.encoders.vae}
    return {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}


def same(first: OpenUniModel, second: OpenUniModel) -> bool:
    a, b = tensors(first), tensors(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("options", [{"stage": 2}, {"native": True}, {"suffix": ".safetensors", "stage": 2}], ids=str)
def test_every_layout_gives_the_same_weights(options, tiny, filled, write, tmp_path) -> None:
    write(tmp_path / "folder", **options)
    assert same(filled(tiny), filled(tmp_path / "folder"))
    assert "a whole OpenUni checkpoint" in OpenUniModel.check(tmp_path / "folder")


def test_older_names_of_transformers_are_read_too(filled, tiny, write, tmp_path) -> None:
    """What older releases call language_model.model.* and, without `model.` in front, the rest."""
    write(tmp_path / "folder", native=True)
    path = tmp_path / "folder" / "internvl3" / "model.safetensors"
    stored = {key.removeprefix("model."): x for key, x in load_file(path).items()}
    old = {key.replace("language_model.", "language_model.model."): x for key, x in stored.items()}
    old["language_model.lm_head.weight"] = old.pop("lm_head.weight")
    save_file(old, path)
    assert same(filled(tiny), filled(tmp_path / "folder"))


def test_shards_and_variants_of_the_hub_are_read(folder, tiny, filled) -> None:
    path = folder / "internvl3" / "model.safetensors"
    stored = load_file(path)
    names = sorted(stored)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for name, keys in shards.items():
        save_file({key: stored[key] for key in keys}, path.parent / name)
    listed = {key: name for name, keys in shards.items() for key in keys}
    (path.parent / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    path.unlink()
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert same(filled(tiny), filled(folder))
    model = OpenUniModel.open(ModelConfig(path=str(folder)))
    assert len(model.files()) == len({*model.files()}) and all(file.is_file() for file in model.files())
    (path.parent / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model-00002-of-00002.safetensors"):
        hub_files(path.parent, "model")


def test_a_dump_of_the_whole_model_counts_before_the_public_models(folder, tiny, filled) -> None:
    with OpenUniModel.open(ModelConfig(path=str(tiny))).weights() as weights:
        dump = {key: weights.tensor(key).clone() for key in weights.shapes}
    torch.save({"state_dict": dump}, own(folder))
    for path in folder.glob("*/*.safetensors"):
        path.unlink()
    assert same(filled(tiny), filled(folder))


def test_the_tower_and_the_language_model_are_those_of_transformers(write, filled, tmp_path) -> None:
    """transformers' own class loads the folder, and gives the same tokens of a picture and states of a prompt."""
    with lean_import():
        from transformers import InternVLForConditionalGeneration

    write(tmp_path / "folder", native=True)
    theirs = InternVLForConditionalGeneration.from_pretrained(tmp_path / "folder" / "internvl3", dtype=torch.float32)
    model = filled(tmp_path / "folder")
    side = model.config.vit.image_size
    pixels = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    normed = ((pixels + 1) / 2 - mean) / std
    wanted = theirs.model.get_image_features(normed[None], vision_feature_layer=-1)
    wanted = getattr(wanted, "pooler_output", wanted)
    torch.testing.assert_close(model.encoders.features(pixels, "sdpa"), wanted[0], rtol=1e-4, atol=1e-5)
    ids = torch.tensor([model.tokenize("a red cup")])
    last = model.tokenizer.qwen.encode("describe this picture", add_special_tokens=False)
    logits = theirs(input_ids=ids).logits
    assert logits.shape[-1] == model.config.llm.vocab_size and last
    from reca_fast.models.parts.qwen2 import causal_view

    decoder = model.module.decoder
    rows = model.module.embed_tokens(ids[0], torch.device("cpu"), torch.float32)
    hidden, _ = decoder(decoder.stream(rows, torch.arange(len(rows))), causal_view([len(rows)]), "sdpa")
    torch.testing.assert_close(hidden @ theirs.lm_head.weight.T, logits[0], rtol=1e-4, atol=1e-5)


# Export


@pytest.mark.parametrize(("suffix", "stage"), [(".pth", 1), (".safetensors", 2)])
def test_an_export_holds_what_was_trained_in_the_authors_layout(suffix, stage, write, filled, tmp_path) -> None:
    write(tmp_path / "base", suffix=suffix, stage=stage)
    model = filled(tmp_path / "base")
    trained = {name: p.detach() + 1 for name, p in model.module.named_parameters() if p.requires_grad}
    assert model.export(tmp_path / "export", trained, torch.bfloat16) == []
    path = own(tmp_path / "export")
    assert path.name == f"openuni_tiny{suffix}"
    stored = torch.load(path, weights_only=True) if suffix == ".pth" else load_file(path)
    assert stored.keys() == {NETWORK_NAMES.key(name) for name in trained}
    assert {x.dtype for x in stored.values()} == {torch.bfloat16}
    assert stored["transformer.transformer_blocks.0.ff.conv_point.weight"].shape == (64, 160, 1, 1)
    assert path.stat().st_size < 4 * sum(x.nbytes for x in stored.values())  # no storage of a whole file behind a view
    again = filled(tmp_path / "export")
    for name, tensor in trained.items():
        assert torch.equal(again.module.get_parameter(name), tensor.bfloat16().float()), name
    assert not list((tmp_path / "export" / "sana").rglob("*.safetensors"))
    assert "a whole OpenUni checkpoint" in OpenUniModel.check(tmp_path / "export")


def test_public_folders_may_be_links(folder, tiny, filled, tmp_path) -> None:
    for part in ("internvl3", "sana", "vae"):
        shutil.rmtree(folder / part)
        (folder / part).symlink_to(tiny / part)
    model = filled(folder)
    assert same(filled(tiny), model)
    trained = {name: p.detach() for name, p in model.module.named_parameters() if p.requires_grad}
    model.export(tmp_path / "export", trained, None)
    assert not any(path.is_symlink() for path in (tmp_path / "export").rglob("*"))
    assert same(filled(tmp_path / "export"), model)


# Mistakes


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda folder: shutil.rmtree(folder / "sana"), "sana is missing: put SANA's folder"),
        (lambda folder: shutil.rmtree(folder / "vae"), "vae is missing: put the DC-AE's folder"),
        (lambda folder: own(folder).unlink(), "holds no openuni_*.pth: put one of the authors' files"),
        (
            lambda folder: shutil.copy(own(folder), folder / "openuni_b.pth"),
            "the one to read with --model.weights",
        ),
        (lambda folder: own(folder).write_bytes(b"no"), "not a whole file of torch.save"),
        (lambda folder: torch.save({"a": torch.ones(1)}, own(folder)), "holds no meta_queries, so it is no file of an"),
        (lambda folder: (folder / "internvl3" / "config.json").write_text("{}"), "describes no InternVL3"),
        (lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "vae holds no weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_folder_that_is_not_whole_is_refused_in_one_sentence(broken, said, folder) -> None:
    broken(folder)
    with pytest.raises(UserError) as refusal:
        OpenUniModel.check(folder)
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("connector.layers.0.mlp.fc2.bias", "1 missing (connector.layers.0.mlp.fc2.bias)"),
        ("projector.scale", "1 unexpected (projector.scale)"),
        ("meta_queries", "instead of [8, 64]"),
    ],
)
def test_the_authors_file_is_read_strictly(key, said, folder) -> None:
    stored = torch.load(own(folder), weights_only=True)
    if key == "meta_queries":
        stored["projector.weight"] = torch.zeros(7, 64)
        said = "1 misshapen (projector.weight [7, 64] instead of [48, 64])"
    elif stored.pop(key, None) is None:
        stored[key] = torch.ones(1)
    torch.save(stored, own(folder))
    with pytest.raises(UserError) as refusal:
        OpenUniModel.check(folder)
    assert said in str(refusal.value)


def test_part_of_sana_in_the_authors_file_is_not_mended_from_the_public_one(folder) -> None:
    stored = torch.load(own(folder), weights_only=True)
    torch.save({**stored, "transformer.proj_out.bias": torch.zeros(8)}, own(folder))
    with pytest.raises(UserError, match="missing"):
        OpenUniModel.check(folder)


def test_another_model_s_sana_is_refused(folder) -> None:
    path = folder / "sana" / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "in_channels": 4, "out_channels": 4}))
    with pytest.raises(UserError, match=r"do not fit each other: SANA takes 4 channels and the VAE has 8"):
        open_model(ModelConfig(path=str(folder)))
