"""What a model excludes is one clear sentence, which names the setting, before a weight is read."""

from pathlib import Path

import pytest

from reca_fast.models import TINY
from reca_fast.models.tiny import make_tiny

REFUSALS = {
    "i2t on a frozen side": ("tiny-openuni", "--data.tasks.i2t 1 --loss.i2t 1", "(OpenUni), set --loss.i2t 0"),
    "i2t in OpenUni": ("tiny-openuni", "--data.tasks.i2t 1 --loss.i2t 1 --model.freeze_und false", "freeze_und"),
    "all of OpenUni": ("tiny-openuni", "--model.freeze_und false", "--model.freeze_und true"),
    "half of Harmon": (
        *("tiny-harmon", "--model.freeze_und true --data.tasks.i2t 0 --loss.i2t 0"),
        "--model.freeze_und false",
    ),
    "half of Show-o": (
        *("tiny-showo", "--model.freeze_und true --data.tasks.i2t 0 --loss.i2t 0"),
        "--model.freeze_und false",
    ),
    "a frozen VLM": (
        *("tiny-auxiliary", "--model.freeze_und true --data.tasks.i2t 0 --loss.i2t 0"),
        "--model.freeze_und false",
    ),
    "t2i in a VLM": ("tiny-auxiliary", "--data.tasks.t2i 1 --loss.t2i 1", "t2i"),
    "OpenUni's VAE as condition": ("tiny-openuni", "--model.condition generation", "model.condition"),
    "a VLM's VAE as condition": ("tiny-auxiliary", "--model.condition generation", "model.condition"),
    "a stride": ("tiny-showo", "--data.target_resize.stride 12", "data.target_resize.stride"),
    "rounded rows": ("tiny-showo", "--data.round_rows 8", "data.round_rows"),
    "Harmon's latents alone": ("tiny-harmon", "--model.condition generation", "model.condition"),
    "CLIP where there is none": ("tiny-showo-vq", "--model.condition understanding", "model.condition"),
    "no conversations": (
        "tiny-showo",
        "--data.instructions /nowhere.json",
        "data.instructions=/nowhere.json is no file",
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.mark.parametrize(("name", "options", "says"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_is_excluded_is_said(name, options, says, folders, reca_fast, tmp_path) -> None:
    path = make_tiny(name, folders / name)
    text = f"train --config {name} --model.path {path} --out {tmp_path / 'run'} --device cpu --steps 1 {options}"
    sentence = reca_fast(*text.split()).sentence
    assert says in sentence, sentence
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("other", TINY)
@pytest.mark.parametrize("name", ["tiny-bagel"])
def test_the_checkpoint_of_another_model_is_refused(name, other, folders, reca_fast, tmp_path) -> None:
    path = make_tiny(other, folders / other)
    if other == name:
        pytest.skip("this is its own")
    said = reca_fast("train", "--config", name, "--model.path", path, "--out", tmp_path / "run")
    assert f"{path} is a checkpoint of another model" in said.sentence
