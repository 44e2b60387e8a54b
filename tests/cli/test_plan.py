"""`reca-fast plan`: figures, a picture and a recipe, from the project's own step on fake tensors."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from reca_fast.cli.options import parse
from reca_fast.config import RunConfig
from reca_fast.hardware import Gpu, find_gpu
from reca_fast.models import open_model
from reca_fast.plan import make_plan

KEYS = {"fits", "peak_gpu_gib", "peak_host_gib", "by_category", "tflop_per_image", "step_seconds", "images_per_step"}
SMALL = "--config tiny-bagel --data.tokens_per_pack 300"


def test_a_plan_is_a_table_figures_a_picture_and_a_recipe(tiny_folder, reca_fast, tmp_path) -> None:
    files = {kind: tmp_path / f"plan.{kind}" for kind in ("json", "png", "yaml")}
    where = ["--json", files["json"], "--png", files["png"], "--write", files["yaml"], "--model.path", tiny_folder]
    said = reca_fast("plan", *SMALL.split(), *where, "--gpu", "rtx_4090", "--price", "0.5")
    assert said.code == 0 and "It fits." in said.out and "at 0.5 an hour" in said.out, said
    plan = json.loads(files["json"].read_text())
    assert plan.keys() >= KEYS and plan["fits"] and plan["gpu"] == "RTX 4090"
    assert plan["peak_gpu_gib"] == pytest.approx(sum(plan["by_category"].values()), abs=0.01)
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    written = parse(RunConfig, "train", ["--config", str(files["yaml"])])
    assert written == parse(RunConfig, "train", [*SMALL.split(), "--model.path", str(tiny_folder)])


def test_levers_are_pulled_until_it_fits(tiny_folder, reca_fast, tmp_path, monkeypatch) -> None:
    """On a GPU that is a little too small for the recipe as it is."""
    options = [*SMALL.split(), "--model.path", tiny_folder, "--json", tmp_path / "plan.json"]
    config = parse(RunConfig, "train", list(map(str, options[:-2])))
    peak = make_plan(config, open_model(config.model), find_gpu("4090")).peak_gpu_gib
    small = _like(find_gpu("4090"), int(peak * 2**30) - 1)
    monkeypatch.setattr("reca_fast.hardware.find_gpu", lambda name: small)
    assert reca_fast("plan", *options, "--gpu", "4090").code == 1
    said = reca_fast("plan", *options, "--gpu", "4090", "--goal", "fits", "--write", tmp_path / "fits.yaml")
    after = json.loads((tmp_path / "plan.json").read_text())
    assert said.code == 0 and after["fits"]
    assert "--memory.recompute" in said.out and "--memory.trained" not in said.out  # which fp32 arithmetic excludes
    assert parse(RunConfig, "train", ["--config", str(tmp_path / "fits.yaml")]).memory.recompute != "none"


def _like(gpu: Gpu, usable: int) -> Any:
    """The same GPU with other memory."""
    return SimpleNamespace(**gpu._asdict(), usable_bytes=usable)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--gpu h100", "Which model? Name its folder with --model.path"),
        ("--config bagel --gpu rtx4091", "RTX 4090"),
        ("--config bagel --gpu h100 --gpus 3 --data.packs_per_step 2", "cannot be shared by 3 processes"),
        ("--config bagel --gpu h100 --model.name BAGLE", "BAGEL-7B-MoT"),
    ],
)
def test_mistakes_are_one_sentence(options, says, reca_fast) -> None:
    assert says in reca_fast("plan", *options.split()).sentence
