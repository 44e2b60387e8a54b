"""`reca-fast evaluate`: what it needs for which score, and what the report says."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.judge_folders import write_clip, write_dino

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = {"0000": "a cat", "0001": "a red dog", "0002": "a table"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of pictures, one of which lacks a picture, and the prompts of three."""
    root = tmp_path_factory.mktemp("scored")
    random = np.random.default_rng(0)
    for folder, names in (("drawn", PROMPTS), ("reference", ["0000", "0001", "other"])):
        (root / folder).mkdir()
        for name in names:
            pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{name}.png")
    lines = [json.dumps({"id": name, "prompt": text}) for name, text in PROMPTS.items()]
    (root / "prompts.jsonl").write_text("\n".join(lines))
    return root


@pytest.mark.slow
def test_pictures_are_scored_beside_their_references(reca_fast, folders, tmp_path):
    out = tmp_path / "new" / "report.json"
    said = reca_fast("evaluate", "--pictures", folders / "drawn", "--reference", folders / "reference", "--out", out)
    assert said.code == 0, said.err
    report = json.loads(out.read_text())
    assert report["each"].keys() == {"0000", "0001"} and report["scores"].keys() == {"psnr", "ssim"}
    psnr = report["scores"]["psnr"]
    assert psnr["count"] == 2 and psnr["low"] <= psnr["value"] <= psnr["high"]
    assert psnr["value"] == pytest.approx(np.mean([each["psnr"] for each in report["each"].values()]))
    assert report["left_out"] == {
        "pictures without a reference of their name": 1,
        "references without a picture of their name": 1,
    }
    assert "1 pictures without a reference" in said.out and f"{psnr['value']:.3f}" in said.out
    assert [path.name for path in out.parent.iterdir()] == ["report.json"]


@pytest.mark.slow
def test_every_judge_gives_its_score_and_is_named(reca_fast, folders, tmp_path):
    from reca_fast.evaluation.lpips import alexnet

    clip, dino, lpips = write_clip(tmp_path / "clip"), write_dino(tmp_path / "dino"), tmp_path / "alexnet.pth"
    layers = torch.nn.Sequential(*alexnet().layers)
    torch.save({f"features.{name}": tensor for name, tensor in layers.state_dict().items()}, lpips)
    given = ["--pictures", folders / "drawn", "--reference", folders / "reference", "--device", "cpu"]
    given += ["--prompts", folders / "prompts.jsonl", "--clip", clip, "--dino", dino, "--lpips", lpips]
    said = reca_fast("evaluate", *given, "--out", tmp_path / "report.json")
    assert said.code == 0, said.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert {name: score["count"] for name, score in report["scores"].items()} == {
        **dict.fromkeys(("psnr", "ssim", "lpips", "dino_similarity"), 2),
        "clip_score": 3,
    }
    assert report["judges"].keys() == {"clip", "lpips", "dino"}
    assert report["judges"]["lpips"]["files"].keys() == {"alexnet.pth"}
    assert {"config.json", "model.safetensors"} <= report["judges"]["clip"]["files"].keys()
    assert report["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "Say what to score: --pictures FOLDER, or --toy"),
        (["--pictures", "drawn", "--toy"], "Say what to score"),
        (["--pictures", "drawn"], "give --reference, or --prompts and --clip"),
        (["--pictures", "drawn", "--prompts", "prompts.jsonl"], "--prompts is for the CLIP score"),
        (["--pictures", "drawn", "--clip", "clip"], "--clip scores pictures beside their prompts; give --prompts too"),
        (["--pictures", "drawn", "--lpips", "x.pth"], "--lpips scores pictures beside their reference"),
        (["--pictures", "drawn", "--reference", "drawn", "--dino", "nowhere"], "nowhere: there is no such folder"),
        (["--pictures", "drawn", "--reference", "drawn", "--out", "drawn"], "drawn is a folder"),
        (["--pictures", "drawn", "--reference", "nowhere"], "nowhere is no folder"),
        (
            ["--pictures", "drawn", "--prompts", "other.jsonl", "--clip", "x"],
            "is called as a prompt",
        ),
        (["--toy"], "No checkpoint given"),
        (["--toy", "--reference", "drawn"], "--reference is for --pictures"),
    ],
)
def test_what_is_missing_is_one_sentence(reca_fast, folders, monkeypatch, given, said):
    monkeypatch.chdir(folders)
    (folders / "other.jsonl").write_text('{"id": "z", "prompt": "a cat"}')
    assert said in reca_fast("evaluate", *given).sentence
    assert not (folders / "report.json").exists()


@pytest.mark.slow
def test_a_checkpoint_is_scored_in_the_toy_world(reca_fast, tiny_folder, tmp_path):
    """A model with random weights: it draws noise, so what is asked is whether everything was."""
    given = ["--model.path", tiny_folder, "--config", "tiny-bagel", "--device", "cpu", "--count", 2]
    given += ["--sampling.steps", 1, "--data.target_resize", "{max_size: 32, min_size: 32}", "--sampling.guidance", 1]
    said = reca_fast("evaluate", "--toy", *given, "--out", tmp_path / "toy.json")
    assert said.code == 0, said.err
    report = json.loads((tmp_path / "toy.json").read_text())
    assert {"overall", "reconstruction", "held_out", "dense.colours_only"} <= report["scores"].keys()
    assert report["scores"]["reconstruction.psnr"]["count"] == 2 and len(report["each"]) == 18
    assert report["model"] == str(tiny_folder) and report["files"]
