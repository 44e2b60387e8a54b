"""`reca-fast generate --edit`: pictures from the command line or a prompts file, changed as the prompts say."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from reca_fast.config import ModelConfig, SamplingConfig
from reca_fast.memory import fill_model
from reca_fast.models.bagel import BagelModel
from reca_fast.models.showo.tiny import write_tiny_checkpoint as write_tiny_showo

pytestmark = pytest.mark.usefixtures("one_thread")

TURNED = 6
"""The EXIF orientation of a picture whose top is at its right side."""


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with velocities that are not zero, as those of a fresh one are."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("edits") / "checkpoint"))
    weights = load_file(folder / "ema.safetensors")
    head = weights["llm2vae.weight"]
    weights["llm2vae.weight"] = torch.randn(head.shape, generator=torch.Generator().manual_seed(0)) / 8
    save_file(weights, folder / "ema.safetensors")
    return folder


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """60 x 100 pixels as it is seen, 100 x 60 as it is stored."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = TURNED
    (tmp_path / "photos").mkdir()
    path = tmp_path / "photos" / "cat.png"
    Image.fromarray(pixels).save(path, exif=exif)
    return path


@pytest.fixture
def generate(folder, reca_fast, tmp_path) -> Callable:
    def run(*options):
        where = ["--model.path", folder, "--model.precision", "fp32", "--out", tmp_path / "out"]
        return reca_fast("generate", *where, "--device", "cpu", "--sampling.steps", 2, *options)

    return run


def drawn(tmp_path: Path, name: str) -> np.ndarray:
    with Image.open(tmp_path / "out" / f"{name}.png") as picture:
        return np.asarray(picture)


def test_a_picture_is_changed_as_each_prompt_says(generate, photograph, folder, tmp_path) -> None:
    """As it is seen, not as it is stored; by the model's own `edit`, with the seeds of the prompts' numbers."""
    said = generate("--edit", photograph, "--prompt", '["make it red", "add a hat"]', "--sampling.seed", 5)
    assert said.out.splitlines()[1:] == [
        f"{tmp_path / 'out' / '0000.png'}: make it red",
        f"{tmp_path / 'out' / '0001.png'}: add a hat",
    ]
    model = BagelModel.open(ModelConfig(path=str(folder), precision="fp32"))
    fill_model(model, torch.device("cpu"))
    with Image.open(photograph) as stored:
        seen = torch.from_numpy(np.array(stored.transpose(Image.Transpose.ROTATE_270)))
    wanted = model.edit([seen] * 2, ["make it red", "add a hat"], SamplingConfig(steps=2), [5, 6])
    (other,) = model.edit([seen], ["make it blue"], SamplingConfig(steps=2), [5])
    assert not torch.equal(other, wanted[0])
    for name, picture in zip(("0000", "0001"), wanted, strict=True):
        assert picture.shape == (104, 64, 3) and np.array_equal(drawn(tmp_path, name), picture.numpy())


def test_a_file_of_prompts_may_change_pictures_beside_drawing_new_ones(generate, photograph, tmp_path) -> None:
    """A picture's path begins at the file's folder, and the default of --edit serves the lines without one."""
    lines = [{"prompt": "make it red", "id": "red", "image": "photos/cat.png"}, {"prompt": "a cat", "id": "new"}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert generate("--prompts", tmp_path / "prompts.jsonl").code == 0
    red, new = drawn(tmp_path, "red"), drawn(tmp_path, "new")
    assert (red.shape, new.shape) == ((104, 64, 3), (128, 128, 3))
    assert generate("--prompts", tmp_path / "prompts.jsonl", "--edit", photograph).code == 0
    assert np.array_equal(drawn(tmp_path, "red"), red) and drawn(tmp_path, "new").shape == red.shape
    assert generate("--prompt", '["-", "a cat"]').code == 0
    assert np.array_equal(drawn(tmp_path, "0001"), new)


def test_what_cannot_be_changed_is_refused_in_one_sentence(generate, photograph, reca_fast, tmp_path) -> None:
    def refusal(*options) -> str:
        return generate("--prompt", "make it red", *options).sentence

    assert "none.png is missing; check --edit, or 'image' in the prompts" in refusal("--edit", tmp_path / "none.png")
    assert "photos cannot be read: Is a directory" in refusal("--edit", photograph.parent)
    (tmp_path / "text.png").write_text("no picture")
    assert "text.png cannot be edited: not a readable picture" in refusal("--edit", tmp_path / "text.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(photograph.read_bytes()[:5000])
    assert "cut.png cannot be edited: truncated or damaged picture" in refusal("--edit", cut)
    assert "keeps its shape: leave --width and --height out" in refusal("--edit", photograph, "--width", 64)
    assert "sampling.temperature is set, and this model" in refusal("--edit", photograph, "--sampling.temperature", 1)
    assert "No prompt given" in generate("--edit", photograph).sentence
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x", "image": "none.png"}')
    assert f"{tmp_path / 'none.png'} is missing" in generate("--prompts", tmp_path / "prompts.jsonl").sentence
    write_tiny_showo(tmp_path / "showo", clip=False, layers=1)
    options = ["--model.path", tmp_path / "showo", "--edit", photograph, "--prompt", "x", "--device", "cpu"]
    assert "those that change a given picture are: bagel" in reca_fast("generate", *options).sentence
