"""Lanes go through pictures and conversations in streams of their own, and serve tasks sample by sample or pack by
pack; either way nothing depends on processes, and a resumed run goes on exactly.
"""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from reca_fast.config import DataConfig, TaskWeights
from reca_fast.config.rules import check_data
from reca_fast.data.coverage import check_captions
from reca_fast.data.joined import JoinedSource, conversations_in, open_data
from reca_fast.data.loader import Pack
from reca_fast.data.sources import Source
from reca_fast.data.streams import lanes_of, open_streams, task_of_pack, tasks_in_turn
from reca_fast.errors import UserError
from reca_fast.sample import I2T, RECA, T2I, TASKS
from tests.builders import builder_of
from tests.data.packs import PHOTOS, SMALL, Pictures, described, loader, saved_by, take

TALK = "llava.jsonl/"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of 24 pictures with captions, and of 17 conversations about 5 others."""
    folder = tmp_path_factory.mktemp("data")
    for place, count in (("pictures", 24), ("asked", 5)):
        (folder / place).mkdir()
        for number in range(count):
            Image.new("RGB", (40 + 7 * number, 50), (9 * number, 0, 0)).save(folder / place / f"{number:02d}.png")
            if place == "pictures":
                (folder / place / f"{number:02d}.txt").write_text("a cat")
    with open(folder / "llava.jsonl", "w") as file:
        for number in range(17):
            turns = [{"from": "human", "value": "<image>\nWhy?"}, {"from": "gpt", "value": "so " * (1 + number % 4)}]
            file.write(json.dumps({"image": f"{number % 5:02d}.png", "conversations": turns}) + "\n")
    (folder / "llava.jsonl").open("a").write("{damaged\n")
    return {
        "source": str(folder / "pictures"),
        "instructions": str(folder / "llava.jsonl"),
        "instruction_images": str(folder / "asked"),
    }


def small(folders: dict[str, str], **more: Any) -> DataConfig:
    return replace(SMALL, **folders, tasks=TaskWeights(2.0, 1.0, 1.0), **more)


def tasks_in(packs: list[Pack]) -> Counter[str]:
    return Counter(task for pack in packs for sample in pack.batch for task in sample.tasks)


def test_packs_take_turns_in_the_ratio_of_the_weights() -> None:
    harmon = DataConfig(mix="pack", packs_per_step=4, tasks=TaskWeights(reca=2, t2i=0, i2t=2))
    assert tasks_in_turn(harmon) == (RECA, I2T)
    for step in range(3):  # every step has two packs of each
        assert Counter(task_of_pack(harmon, lane, step) for lane in range(4)) == {RECA: 2, I2T: 2}
    assert (lanes_of(RECA, harmon), lanes_of(I2T, harmon)) == ((0, 2), (1, 3))


def test_ratios_are_exact_whatever_the_number_of_lanes() -> None:
    chance = random.Random(0)
    for _ in range(200):
        weights = [chance.choice((0, 1, 2, 3, 0.5, 0.25, 1 / 3)) for _ in TASKS]
        if not any(weights):
            continue
        config = DataConfig(mix="pack", packs_per_step=chance.randint(1, 9), tasks=TaskWeights(*weights))
        lanes, turns = range(config.packs_per_step), tasks_in_turn(config)
        served = Counter(task_of_pack(config, lane, number) for number in range(len(turns)) for lane in lanes)
        for task, weight in zip(TASKS, weights, strict=True):
            assert served[task] / sum(served.values()) == pytest.approx(weight / sum(weights), rel=2e-3)
        for task in served:  # lanes that serve a task share its records, each once
            items = [i for s in open_streams(config, 50, 0) if s.name == task for lane in s.lanes
                     for i in s.items(lane, config, 3).tolist()]  # fmt: skip
            assert sorted(items) == list(range(50))


def test_odd_ratios_are_met_closely_in_turns_that_are_not_endless() -> None:
    for weights in ((1e9, 0.0, 1e-3), (3.14159, 2.71828, 1.41421), (1e-12, 0.0, 1.0), (0.1, 0.2, 0.7)):
        config = DataConfig(mix="pack", packs_per_step=64, tasks=TaskWeights(*weights))
        turn = tasks_in_turn(config)
        assert len(turn) <= 1001
        for task, weight in zip(TASKS, weights, strict=True):
            assert turn.count(task) / len(turn) == pytest.approx(weight / sum(weights), abs=2e-3)
            assert (task in turn) == (weight > 0)
    assert len(turn) == 10


@pytest.mark.parametrize("mix", ["sample", "pack"])
def test_i2t_learns_from_conversations_and_the_others_from_pictures(mix, folders) -> None:
    config = small(folders, mix=mix, packs_per_step=4)
    with loader(open_data(config), config) as packs:
        taken = take(packs, 24)
        summary = packs.summary()
    for pack in taken:
        for sample in pack.batch:
            (task,) = sample.tasks
            assert sample.key.startswith(TALK) == (task == I2T)
            assert (sample.target is None) == (task == I2T)
        if mix == "pack":
            assert len(tasks_in([pack])) == 1
    if mix == "pack":
        assert Counter(pack.batch[0].tasks[0] for pack in taken) == {RECA: 48, T2I: 24, I2T: 24}
    else:
        drawn = tasks_in(taken)
        assert drawn[I2T] / sum(drawn.values()) == pytest.approx(1 / 4, abs=0.06)
        assert drawn[T2I] / sum(drawn.values()) == pytest.approx(1 / 4, abs=0.06)
    assert {sample.key for pack in taken for sample in pack.batch if sample.tasks == (I2T,)} == {
        f"{TALK}{number:09d}" for number in range(17)
    }
    assert summary.startswith("41 records used") and "1 x damaged entry (e.g. llava.jsonl/000000017)" in summary


@pytest.mark.parametrize("mix", ["sample", "pack"])
def test_several_streams_go_on_exactly_and_depend_on_no_process(mix, folders) -> None:
    config = small(folders, mix=mix, packs_per_step=3)
    source = open_data(config)
    with loader(source, config) as packs:
        whole = take(packs, 9)
    saved: dict[str, Any] = {}
    for lanes in ((2,), (0, 1)):  # two processes
        with loader(source, config, lanes) as packs:
            take(packs, 5)
            saved |= saved_by(packs)
    resumed: dict[tuple[int, int], tuple] = {}
    for lanes in ((0,), (1,), (2,)):  # three of them
        with loader(open_data(config), replace(config, workers=1, prefetch=4), lanes) as packs:
            packs.load_state_dict(saved)
            resumed |= described(take(packs, 4))
    assert resumed == described([pack for pack in whole if pack.number >= 5])


def test_the_order_of_pictures_is_that_of_a_run_without_conversations(folders) -> None:
    config = small(folders, packs_per_step=1, lookahead=1)
    pictures = replace(config, instructions="", tasks=TaskWeights(2.0, 1.0, 0.0))
    keys = []
    for each in (config, pictures):
        with loader(open_data(each), each) as packs:
            keys.append([k for p in take(packs, 20) for k in p.keys if not k.startswith(TALK)])
    assert keys[0] == keys[1][: len(keys[0])] and len(keys[0]) > 10


def test_conversations_alone_need_no_pictures_beside_them(folders) -> None:
    config = replace(small(folders), source="", tasks=TaskWeights(0.0, 0.0, 1.0))
    source = open_data(config)
    assert (len(source), conversations_in(source)) == (17, 17)
    with loader(source, config) as packs:
        assert tasks_in(take(packs, 5)).keys() == {I2T}
    unused = open_data(replace(small(folders), tasks=TaskWeights(1.0)))
    assert not isinstance(unused, JoinedSource) and conversations_in(unused) == 0


def test_a_sample_may_serve_all_tasks_at_once(folders) -> None:
    captions = replace(SMALL, source=folders["source"], tasks=TaskWeights(1.0, 0.0, 1.0), serve="all")
    talk = replace(captions, source="", **{k: v for k, v in folders.items() if k != "source"})
    for config in (captions, talk):
        with loader(open_data(config), config) as packs:
            for pack in take(packs, 4):
                for sample in pack.batch:
                    assert sample.tasks == (RECA, I2T) and sample.text.supervised
                    assert sample.condition is not None and sample.target is not None
    builder = builder_of(captions)
    assert builder.plan(0, "a", (64, 64), None, 0).tasks == (RECA,)  # without a caption
    with pytest.raises(UserError, match=r"BAGEL learns t2i by itself.* set --data\.serve one"):
        builder_of(replace(captions, tasks=TaskWeights(1.0, 1.0, 0.0)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"serve": "all", "mix": "pack"}, r"no pack serves one: set --data\.mix sample"),
        ({"serve": "all"}, r"no captions for t2i: set --data\.tasks\.t2i 0"),
        ({"serve": "all", "tasks": TaskWeights(1.0, 0.0, 1.0)}, r"none from data\.source: leave one of them out"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(change, sentence, folders) -> None:
    with pytest.raises(UserError, match=sentence):
        check_data(replace(small(folders), **change))


def test_a_task_without_captions_is_refused_before_it_begins(folders) -> None:
    def check(source: Source, **tasks: float) -> None:
        config = replace(SMALL, tasks=TaskWeights(**tasks))
        check_captions(source, conversations_in(source), config)

    check(PHOTOS, reca=1.0)
    check(Pictures(PHOTOS.images, [None] * 39 + ["a cat"]), reca=1.0, i2t=1.0)
    with pytest.raises(UserError, match=r"data\.tasks\.i2t is above 0 and needs captions: 40 records were looked at, "):
        check(PHOTOS, reca=1.0, i2t=0.1)
    with pytest.raises(UserError, match=r"40 x no caption .* set --data\.tasks\.t2i 0 and --loss\.t2i 0"):
        check(PHOTOS, reca=1.0, t2i=0.1)
    config = small(folders)
    source = open_data(config)
    check_captions(source, conversations_in(source), config)


def test_packs_of_a_task_wait_for_no_other(folders, tmp_path: Path) -> None:
    """Where every picture of the conversations is damaged, the run ends with a sentence about them, although the packs
    of the other tasks are fine.
    """
    for number in range(5):
        good = Path(folders["instruction_images"], f"{number:02d}.png").read_bytes()
        (tmp_path / f"{number:02d}.png").write_bytes(good[:60])
    for mix in ("sample", "pack"):
        config = replace(small(folders, mix=mix), instruction_images=str(tmp_path), packs_per_step=1)
        with loader(open_data(config), config) as packs:
            if mix == "sample":  # they are skipped and counted, as they share packs with pictures
                take(packs, 40)
                assert "17 skipped: 17 x truncated or damaged picture" in packs.summary()
                continue
            with pytest.raises(UserError, match=r"None of 17 records could be used: .* Check data\.instructions\."):
                take(packs, 30)
