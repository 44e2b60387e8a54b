"""`reca-fast export`: a folder in the authors' layout, trained tensors in place, every other byte the base's."""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reca_fast.checkpoints import CheckpointStore, SavedWeights
from reca_fast.errors import UserError
from reca_fast.models.bagel.config import BagelConfig
from reca_fast.models.bagel.export import export_folder
from reca_fast.models.bagel.names import NETWORK_NAMES, TABLES

pytestmark = pytest.mark.usefixtures("one_thread")


STAYS = ("README.md", "optimizer.00000-of-00008.pt", "scheduler.pt", "data_status.pt", "model.safetensors.index.json")
"""Files of a base that an export leaves behind."""


@pytest.fixture(scope="module")
def bf16_base(tiny_folder: Path, tmp_path_factory) -> Path:
    """The tiny checkpoint with its weights in bf16, as the public one has them."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("bf16") / "base"))
    weights = load_file(folder / "ema.safetensors")
    save_file({key: x.bfloat16() for key, x in weights.items()}, folder / "ema.safetensors")
    for name in STAYS:
        (folder / name).write_text("of the base alone")
    (folder / "generation_config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def trained_run(bf16_base: Path, pictures: Path, tmp_path_factory) -> Path:
    """A run folder of three steps from that base."""
    from reca_fast.cli import main

    out = tmp_path_factory.mktemp("run")
    sizes = "--data.target_resize.max_size 32 --data.target_resize.min_size 16 --data.tokens_per_pack 400"
    length = "--steps 3 --save_every 3 --sample_every 0 --optim.warmup_steps 1 --device cpu"
    where = f"--model.path {bf16_base} --data.source {pictures} --out {out}"
    assert main(["train", "--config", "tiny-bagel", *sizes.split(), *length.split(), *where.split()]) == 0
    return out


def saved_weights(run: Path) -> dict[str, torch.Tensor]:
    """Public key -> fp32 tensor, as the training checkpoint holds them."""
    newest = CheckpointStore(run / "checkpoints").newest()
    assert newest is not None
    return {NETWORK_NAMES.key(name): tensor for name, tensor in SavedWeights(newest, "model").items()}


def test_an_export_loads_and_holds_what_was_trained(trained_run, bf16_base, reca_fast, tmp_path) -> None:
    out = tmp_path / "exported"
    said = reca_fast("export", trained_run, out)
    assert said.code == 0, said.err
    saved, base, got = saved_weights(trained_run), *(load_file(f / "ema.safetensors") for f in (bf16_base, out))
    assert f"{len(saved)} trained tensors (live) of step-0000003, the rest from {bf16_base}" in said.out
    assert got.keys() == base.keys() and set(TABLES) <= got.keys()
    assert all("moe_gen" in key or key.startswith(("time_embedder", "vae2llm", "llm2vae")) for key in saved)
    for key, tensor in got.items():
        wanted = saved[key].bfloat16() if key in saved else base[key]
        assert tensor.dtype is torch.bfloat16 and torch.equal(tensor, wanted), key
    assert any(not torch.equal(got[key], base[key]) for key in saved), "training moved nothing"

    assert f"weights: {bf16_base / 'ema.safetensors'}" in said.out
    assert f"not copied: {', '.join(sorted(STAYS))}" in said.out
    kept = len(base) - len(saved) + 144
    counts = "2 of embeddings, 29 of understanding expert, 4 of connector, 37 of vision tower, 2 of position tables"
    assert f"{kept} tensors are byte-identical to {bf16_base}: {counts}, 144 of VAE.\n" in said.out
    names = {path.name for path in bf16_base.iterdir()} - set(STAYS)
    assert {path.name for path in out.iterdir()} == names
    for name in names - {"ema.safetensors"}:
        assert (out / name).read_bytes() == (bf16_base / name).read_bytes()
    assert reca_fast("verify", out).code == 0  # loads strictly


def test_dtype_and_one_checkpoint_of_a_run(trained_run, reca_fast, tmp_path) -> None:
    step = trained_run / "checkpoints" / "step-0000003"
    said = reca_fast("export", step, tmp_path / "fp32", "--dtype", "fp32")
    assert said.code == 0 and "tensors are the same numbers as in" in said.out and "stored as float32: " in said.out
    got, saved = load_file(tmp_path / "fp32" / "ema.safetensors"), saved_weights(trained_run)
    assert {x.dtype for x in got.values()} == {torch.float32}
    assert all(torch.equal(got[key], tensor) for key, tensor in saved.items())


def test_a_base_that_has_moved_is_named_by_hand(trained_run, bf16_base, reca_fast, tmp_path) -> None:
    moved = shutil.copytree(bf16_base, tmp_path / "moved")
    assert reca_fast("export", trained_run, tmp_path / "out", "--base", moved).code == 0


def test_weights_under_another_name(trained_run, bf16_base, reca_fast, tmp_path) -> None:
    """The base's file is named; what is written is ema.safetensors, and no other weights lie beside it."""
    base = Path(shutil.copytree(bf16_base, tmp_path / "base"))
    weights = load_file(base / "ema.safetensors")
    save_file({key: torch.zeros_like(x) for key, x in weights.items()}, base / "model.safetensors")
    again = reca_fast("export", trained_run, tmp_path / "out", "--base", base)
    assert "holds ema.safetensors and model.safetensors: name the one to read" in again.sentence
    for name, is_zero in (("ema.safetensors", False), ("model.safetensors", True)):
        out = tmp_path / name
        said = reca_fast("export", trained_run, out, "--base", base, "--base_weights", name)
        assert said.code == 0 and f"weights: {base / name}" in said.out
        assert [path.name for path in sorted(out.glob("*.safetensors"))] == ["ae.safetensors", "ema.safetensors"]
        got = load_file(out / "ema.safetensors")
        assert (not got["connector.fc1.weight"].any()) == is_zero and got["llm2vae.weight"].any()


def test_position_tables_are_written_for_a_base_without(bf16_base, reca_fast, tmp_path) -> None:
    base = Path(shutil.copytree(bf16_base, tmp_path / "base"))
    weights = load_file(bf16_base / "ema.safetensors")  # mapped: never from the file that is written next
    save_file({key: x for key, x in weights.items() if key not in TABLES}, base / "ema.safetensors")
    export_folder(base, tmp_path / "out", BagelConfig.from_folder(base), {}, None)
    got = load_file(tmp_path / "out" / "ema.safetensors")
    assert got.keys() == weights.keys()
    for table in TABLES:
        torch.testing.assert_close(got[table], weights[table])
    assert reca_fast("verify", base).code == 2 and reca_fast("verify", tmp_path / "out").code == 0


@pytest.mark.parametrize("name", ["vocab.json", "ae.safetensors", "config.json", "generation_config.json"])
def test_a_link_to_nowhere_in_the_base_is_named(name, bf16_base, tmp_path) -> None:
    base = Path(shutil.copytree(bf16_base, tmp_path / "base"))
    config = BagelConfig.from_folder(base)
    (base / name).unlink()
    (base / name).symlink_to("gone")
    with pytest.raises(UserError, match=f"{name} is a link to gone, which is not there"):
        export_folder(base, tmp_path / "out", config, {}, None)
    assert not (tmp_path / "out").exists()


def test_unchanged_export_of_a_parity_case_still_agrees(recorded_case, reca_fast, tmp_path) -> None:
    """The recorded weights as a base folder -> export -> the authors' numbers again, and the tensors to the bit."""
    base, out = tmp_path / "base", tmp_path / "exported"
    base.mkdir()
    shutil.copyfile(recorded_case / "weights.safetensors", base / "ema.safetensors")
    shutil.copyfile(recorded_case / "config.json", base / "config.json")
    config = BagelConfig.from_dict(json.loads((recorded_case / "config.json").read_text()), "the case")
    export_folder(base, out, config, {}, None)
    before, after = load_file(base / "ema.safetensors"), load_file(out / "ema.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert reca_fast("verify", recorded_case, "--weights", out, "--out", tmp_path / "exported.st").code == 0
    assert reca_fast("verify", recorded_case, "--out", tmp_path / "own.st").code == 0
    own, exported = load_file(tmp_path / "own.st"), load_file(tmp_path / "exported.st")
    assert all(torch.equal(own[name], exported[name]) for name in own)


# Refusals; none leaves anything behind


def test_links_out_of_the_base_are_not_followed(tiny_folder, tmp_path) -> None:
    base = tmp_path / "hub" / "snapshots" / "abc"
    shutil.copytree(tiny_folder, base)
    blobs = tmp_path / "hub" / "blobs"
    blobs.mkdir()
    (tmp_path / "secret").write_text("of this machine")
    (base / "notes.txt").symlink_to(tmp_path / "secret")
    (base / "more").symlink_to(tmp_path)
    (base / "gone.txt").symlink_to("nowhere")
    (base / "generation_config.json").symlink_to("llm_config.json")
    os.rename(base / "vit_config.json", blobs / "0123")  # as the hub's cache keeps it
    (base / "vit_config.json").symlink_to("../../blobs/0123")
    export_folder(base, tmp_path / "out", BagelConfig.from_folder(base), {}, None)
    got = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"vit_config.json", "generation_config.json"} <= got and not {"notes.txt", "more", "gone.txt"} & got
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())

    os.rename(base / "ae.safetensors", tmp_path / "ae.safetensors")
    (base / "ae.safetensors").symlink_to(tmp_path / "ae.safetensors")
    with pytest.raises(UserError, match="is a link out of its folder"):
        export_folder(base, tmp_path / "again", BagelConfig.from_folder(base), {}, None)
    assert not (tmp_path / "again").exists()


def test_impossible_exports_leave_nothing_behind(trained_run, tiny_folder, reca_fast, tmp_path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "keep.txt").write_text("mine")
    assert f"{full} exists and is not empty" in reca_fast("export", trained_run, full).sentence
    assert [path.name for path in full.iterdir()] == ["keep.txt"]
    out = tmp_path / "out"
    assert "holds no whole checkpoint" in reca_fast("export", tmp_path / "nowhere", out).sentence
    assert (
        "step-0000009 is no whole checkpoint"
        in reca_fast("export", trained_run / "checkpoints" / "step-0000009", out).sentence
    )
    assert "holds no 'average' weights" in reca_fast("export", trained_run, out, "--weights", "average").sentence
    assert "does not exist" in reca_fast("export", trained_run, out, "--base", tmp_path / "nowhere").sentence
    assert not out.exists()


def test_base_of_another_size(trained_run, reca_fast, tmp_path) -> None:
    from reca_fast.models.bagel.tiny import write_tiny_checkpoint

    sizes = {"layers": 2, "vit_hidden_size": 48, "text_vocab": 300}
    write_tiny_checkpoint(tmp_path / "wider", hidden_size=72, intermediate_size=96, **sizes)
    write_tiny_checkpoint(tmp_path / "shallower", hidden_size=64, intermediate_size=96, **(sizes | {"layers": 1}))
    for base in ("wider", "shallower"):
        said = reca_fast("export", trained_run, tmp_path / "out", "--base", tmp_path / base)
        assert "has no place for" in said.sentence
        assert not (tmp_path / "out").exists()


def test_a_damaged_base_is_refused_by_name(trained_run, bf16_base, reca_fast, tmp_path) -> None:
    base = Path(shutil.copytree(bf16_base, tmp_path / "base"))
    weights = load_file(base / "ema.safetensors")
    save_file({k: x for k, x in weights.items() if k != "llm2vae.bias"}, base / "ema.safetensors")
    assert "1 missing (llm2vae.bias)" in reca_fast("export", trained_run, tmp_path / "out", "--base", base).sentence
    save_file(weights | {"llm2vae.bias": weights["llm2vae.bias"].int()}, base / "ema.safetensors")
    said = reca_fast("export", trained_run, tmp_path / "out", "--base", base).sentence
    assert "llm2vae.bias as I32; weights must be" in said
    os.truncate(base / "ema.safetensors", 5000)
    assert "not a whole safetensors" in reca_fast("export", trained_run, tmp_path / "out", "--base", base).sentence
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_never_exported(trained_run, reca_fast, tmp_path) -> None:
    run, out = Path(shutil.copytree(trained_run, tmp_path / "run")), tmp_path / "out"
    file = run / "checkpoints" / "step-0000003" / "shard-00000.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    assert f"step-0000003 is damaged (the checksum of {file.name} differs)" in reca_fast("export", run, out).sentence
    assert f"the checksum of {file.name} differs" in reca_fast("export", file.parent, out).sentence
    unverified = reca_fast("export", run, out, "--verify_checkpoint", "false").sentence
    assert f"step-0000003 cannot be loaded ({file.name} is damaged)" in unverified
    assert not out.exists()


def test_a_base_with_other_contents(trained_run, bf16_base, reca_fast, tmp_path) -> None:
    """Refused where the run says it lies; taken, and said, when it is asked for by name."""
    run, out = Path(shutil.copytree(trained_run, tmp_path / "run")), tmp_path / "out"
    base = Path(shutil.copytree(bf16_base, tmp_path / "base"))
    weights = load_file(base / "ema.safetensors")
    save_file(weights | {"llm2vae.bias": weights["llm2vae.bias"] + 1}, base / "ema.safetensors")
    said = reca_fast("export", run, out, "--base", base)
    assert said.code == 0 and f"{base} is not what the run started from, it differs in ema.safetensors." in said.out
    shutil.rmtree(out)
    state = json.loads((run / "checkpoints" / "step-0000003" / "run_state.json").read_text())
    folder = CheckpointStore(run / "checkpoints").save(
        4, {"model": {"x": torch.ones(1)}}, state | {"base": str(base), "step": 4}
    )
    assert "differs in ema.safetensors. Set --base" in reca_fast("export", folder, out).sentence
    assert not out.exists()


def test_an_interrupted_export_leaves_nothing(tiny_folder, tmp_path, monkeypatch) -> None:
    def interrupted(*args, **options) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("reca_fast.models.bagel.export.rewrite_weights", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_folder(tiny_folder, tmp_path / "out", BagelConfig.from_folder(tiny_folder), {}, None)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_created(tiny_folder, tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/out")):
        with pytest.raises(UserError, match=f"export to {out} failed"):
            export_folder(tiny_folder, out, BagelConfig.from_folder(tiny_folder), {}, None)
    assert (tmp_path / "file").read_text() == "mine"


def test_full_disk_leaves_nothing(tiny_folder, tmp_path) -> None:
    """No file may grow beyond half of the weights: the copy fails in the middle, as on a full disk."""
    half = (tiny_folder / "ema.safetensors").stat().st_size // 2
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (half, before[1]))
    try:
        with pytest.raises(UserError, match=r"export to .*out failed and was removed: .*File too large") as failure:
            export_folder(tiny_folder, tmp_path / "out", BagelConfig.from_folder(tiny_folder), {}, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(failure.value).endswith(".")
    assert not (tmp_path / "out").exists()
