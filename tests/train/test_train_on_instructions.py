"""Training on conversations beside pictures: it goes on exactly, knows its data by content, and trains from a cache."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reca_fast.config import RunConfig
from reca_fast.data.cache.source import verify_cache
from reca_fast.errors import UserError
from reca_fast.precompute import make_cache
from tests.train.short_run import course, running

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def talk(pictures, tmp_path_factory) -> Path:
    """A folder with llava.json, 30 conversations about the pictures in it, and two about none of them."""
    folder = tmp_path_factory.mktemp("talk") / "llava"
    folder.mkdir()
    entries = []
    for number in range(32):
        name = f"{number % 24:02d}.png" if number < 30 else f"gone/{number}.png"
        if number < 24:
            shutil.copyfile(pictures / name, folder / name)
        turns = [{"from": "human", "value": "<image>\nno?"}, {"from": "gpt", "value": "no. " * (1 + number % 3)}]
        entries.append({"id": 1, "image": name, "conversations": turns})
    (folder / "llava.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def mixed(configured, talk) -> Callable[..., RunConfig]:
    """mixed(out): four steps of two packs, one of reca and one of conversations."""

    def make(out: Path, folder: Path = talk, cache: Path | None = None, **more: object) -> RunConfig:
        config = configured(out, True)
        config.loss.t2i = config.data.tasks.t2i = 0.0
        settings = {"instructions": str(folder / "llava.json"), "mix": "pack", "packs_per_step": 2, **more}
        config.data = replace(config.data, cache=str(cache or ""), **settings)
        return replace(config, steps=4, sample_every=0)

    return make


@pytest.fixture(scope="module")
def whole(mixed, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    running.train(mixed(out))
    return out


@pytest.fixture
def half(whole, tmp_path) -> Path:
    """What a kill after the second step leaves."""
    shutil.copytree(whole, tmp_path / "run")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-000000{step}")
    return tmp_path / "run"


def test_every_step_learns_from_both(whole, mixed, tmp_path, capsys) -> None:
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss_reca"] > 0 and row["loss_i2t"] > 0 for row in rows) and len(rows) == 4
    for row in rows:  # every task is told by itself
        for total, each in (("images", "samples"), ("tokens", "tokens")):
            assert row[f"{each}_reca"] > 0 < row[f"{each}_i2t"]
            assert row[f"{each}_reca"] + row[f"{each}_i2t"] == row[total]
        assert 0 < row["loss_tokens_i2t"] < row["tokens_i2t"] and 0 < row["loss_tokens_reca"] < row["tokens_reca"]
        assert not any(key.endswith("t2i") for key in row)
    running.train(replace(mixed(tmp_path / "run"), steps=1))
    said = capsys.readouterr().out
    assert re.search(r"step 1/1  loss \d+\.\d+ \(reca \d+\.\d+, i2t \d+\.\d+\)  ", said)
    left_out = "2 x conversation whose picture is missing (e.g. gone/30.png, gone/31.png)"
    assert f"data.instructions: 30 conversations, 2 left out: {left_out}\n" in said
    assert said.count(left_out) == 2  # at the start, and in what became of the data


def test_captions_of_pictures_that_are_not_there_are_told_at_the_start(mixed, talk, tmp_path, capsys) -> None:
    pictures = tmp_path / "pictures"
    shutil.copytree(talk, pictures)
    rows = [{"file_name": name, "caption": "a cat"} for name in ("00.png", "99.png")]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    running.train(replace(mixed(tmp_path / "run", source=str(pictures)), steps=1))
    said = capsys.readouterr().out
    assert "data.source: 1 rows of metadata name a picture that is not there (e.g. 99.png).\n" in said


def test_a_killed_run_goes_on_exactly_also_where_its_data_moved(whole, half, mixed, talk, tmp_path) -> None:
    shutil.copytree(talk, tmp_path / "moved")
    running.train(mixed(half, tmp_path / "moved"))
    assert course(half) == course(whole)


def test_other_words_or_pictures_are_refused_on_resume(half, mixed, talk, tmp_path) -> None:
    shutil.copytree(talk, tmp_path / "words")
    file = tmp_path / "words" / "llava.json"
    file.write_text(file.read_text().replace("no?", "so?"))
    shutil.copytree(talk, tmp_path / "pictures")
    shutil.copyfile(talk / "00.png", tmp_path / "pictures" / "01.png")
    for name, differs in (("words", "texts"), ("pictures", "sizes, pictures")):
        with pytest.raises(
            UserError, match=rf"data\.instructions=.* is not what the saved run had there, it differs in {differs}\."
        ):
            running.train(mixed(half, tmp_path / name))


@pytest.mark.slow
def test_a_cache_holds_the_conversations_and_their_pictures(whole, mixed, tmp_path) -> None:
    config = mixed(tmp_path / "none")
    make_cache(tmp_path / "cache", config.model, config.data, device=torch.device("cpu"), records_per_shard=16)
    assert "54 pictures" in verify_cache(tmp_path / "cache")
    for given in ({}, {"source": "", "instructions": ""}):  # compared with what it was made of, or taken as it is
        out = tmp_path / f"run{len(given)}"
        running.train(mixed(out, cache=tmp_path / "cache", **given))
        assert course(out) == course(whole)
    file = tmp_path / "llava.json"
    file.write_text(json.dumps(json.loads(Path(config.data.instructions).read_text())[:5]))
    given = {"instructions": str(file), "instruction_images": str(Path(config.data.instructions).parent)}
    with pytest.raises(UserError, match=r"was made from another data\.instructions: it differs in .*texts"):
        running.train(mixed(tmp_path / "other", cache=tmp_path / "cache", **given))


@pytest.mark.slow
def test_a_limit_is_the_same_with_a_cache_of_all_or_of_so_many(mixed, tmp_path) -> None:
    running.train(mixed(tmp_path / "pixels", limit=7))
    for limit in (0, 7):
        config = mixed(tmp_path / "none", limit=limit)
        cache = tmp_path / f"cache{limit}"
        make_cache(cache, config.model, config.data, device=torch.device("cpu"))
        running.train(mixed(tmp_path / f"from{limit}", cache=cache, limit=7))
        assert course(tmp_path / f"from{limit}") == course(tmp_path / "pixels")
    for other in (0, 6):
        with pytest.raises(UserError, match=rf"was made with data\.limit=7, now it is {other}; set it back"):
            running.train(mixed(tmp_path / "other", cache=tmp_path / "cache7", limit=other))


def test_conversations_without_a_source_train_and_draw_grids(mixed, tmp_path) -> None:
    config = replace(mixed(tmp_path / "run", source="", mix="sample"), sample_every=1, sample_count=1, steps=1)
    config.loss.reca = config.data.tasks.reca = 0.0
    running.train(config)
    assert (tmp_path / "run" / "samples" / "step-0000001.png").is_file()


def test_captions_are_missed_before_weights_are_loaded(mixed, talk, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(running, "assemble", lambda *args, **more: pytest.fail("weights are loaded"))
    with pytest.raises(UserError, match=r"data\.tasks\.i2t is above 0 and needs captions: 24 records were looked at"):
        running.train(mixed(tmp_path / "run", instructions="", source=str(talk)))
