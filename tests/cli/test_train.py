"""`reca-fast train` refuses what cannot work before it does anything, in one sentence."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def try_train(tiny_folder, pictures, reca_fast, tmp_path):
    """try_train("--option", value, ...): a run that would work, but for these options."""
    usual = ["--config", "tiny-bagel", "--device", "cpu", "--steps", "1", "--out", tmp_path / "run"]
    usual += ["--model.path", tiny_folder, "--data.source", pictures, "--sample_every", 0]
    return lambda *options: reca_fast("train", *usual, *options)


IMPOSSIBLE = {
    "i2t with a frozen side": ("--loss.i2t 0.1 --data.tasks.i2t 1", r"set --model\.freeze_und false"),
    "a task without weight": ("--data.tasks.t2i 1", r"data\.tasks\.t2i and loss\.t2i must both be above 0"),
    "a weight without task": ("--loss.t2i 1", r"data\.tasks\.t2i and loss\.t2i must both be above 0"),
    "no task at all": ("--data.tasks.reca 0 --loss.reca 0", r"at least one"),
    "no packs": ("--data.packs_per_step 0", r"data\.packs_per_step"),
    "no steps": ("--steps 0", r"steps=0: .*at least 1"),
    "dropout above 1": ("--data.text_dropout 1.5", r"data\.text_dropout=1\.5"),
    "stride": ("--data.condition_resize.stride 15", r"data\.condition_resize\.stride is 15; .* multiple of 14"),
    "size": ("--data.target_resize.max_size 32", r"data\.target_resize\.min_size=64 is above"),
    "backend": ("--model.attention flash_attn", r"attention='flash_attn' cannot run on cpu .* `reca-fast doctor`"),
    "kernels": ("--model.kernels triton", r"kernels=triton cannot run here: .* `reca-fast doctor`"),
    "device": ("--device tpu", r"device.*tpu"),
    "no checkpoint": ("--model.path= --model.name=", r"No checkpoint given; set --model\.path"),
    "no data": ("--data.source=", r"data\.source"),
    "lost checkpoint": ("--model.path /nowhere/bagel", r"checkpoint folder /nowhere/bagel does not exist"),
    "lost data": ("--data.source /nowhere/pictures", r"/nowhere/pictures"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_runs_are_refused_in_one_sentence(case, try_train) -> None:
    options, message = IMPOSSIBLE[case]
    assert re.search(message, try_train(*options.split()).sentence)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(try_train) -> None:
    assert "cuda" in try_train("--device", "cuda").sentence


def test_broken_folders_are_told_by_what_is_wrong_with_them(try_train, tiny_folder, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no pictures" in try_train("--data.source", tmp_path / "empty").sentence
    assert "it holds no llm_config.json" in try_train("--model.path", tmp_path / "empty").sentence
    broken = Path(shutil.copytree(tiny_folder, tmp_path / "broken"))
    weights = load_file(broken / "ema.safetensors")
    save_file({k: x for k, x in weights.items() if k != "llm2vae.bias"}, broken / "ema.safetensors")
    assert "1 missing (llm2vae.bias)" in try_train("--model.path", broken).sentence
    (broken / "llm_config.json").rename(broken / "moved.json")
    said = try_train("--model.path", broken).sentence
    assert "holds weights, but llm_config.json or" in said and "is missing, which tells the model" in said
    (broken / "moved.json").rename(broken / "llm_config.json")
    os.truncate(broken / "ema.safetensors", 3000)
    assert "not a whole safetensors file" in try_train("--model.path", broken).sentence
    (broken / "tokenizer.json").unlink()
    (broken / "vocab.json").unlink()
    assert "vocab.json missing" in try_train("--model.path", broken).sentence
