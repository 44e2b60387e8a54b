"""The loader: packs depend on settings alone, resume is exact, errors of its threads arrive."""

import json
import threading
import time
from dataclasses import asdict, replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reca_fast.config import TaskWeights
from reca_fast.data.lanes import LaneState
from reca_fast.data.outcomes import describe
from reca_fast.data.sources import open_source
from reca_fast.data.streams import epoch_order
from reca_fast.errors import UserError
from reca_fast.sample import Sample
from reca_fast.schema import from_dict
from tests.builders import builder_of
from tests.data.packs import PHOTOS, SMALL, Pictures, described, loader, saved_by, take

# --- order and resume


def test_lanes_share_an_epoch_without_overlap() -> None:
    with loader(PHOTOS, replace(SMALL, lookahead=1)) as packs:
        seen: dict[int, list[str]] = {lane: [] for lane in range(4)}
        while min(map(len, seen.values())) < 10:
            for pack in next(packs):
                assert pack.num_tokens <= SMALL.tokens_per_pack
                seen[pack.lane] += pack.keys
    first_epoch = [sorted(keys[:10]) for keys in seen.values()]
    assert sorted(key for keys in first_epoch for key in keys) == [PHOTOS.key(i) for i in range(40)]
    order = epoch_order(40, SMALL.seed, 0, shuffle=True).tolist()
    assert first_epoch[1] == sorted(PHOTOS.key(i) for i in order[1::4])


def test_order_changes_with_epoch_and_seed_unless_shuffling_is_off() -> None:
    orders = [epoch_order(100, seed, epoch, True).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert epoch_order(100, 0, 5, shuffle=False).tolist() == list(range(100))


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 0), (3, 7)])
def test_packs_do_not_depend_on_processes_workers_or_prefetch(workers: int, prefetch: int) -> None:
    with loader(PHOTOS, SMALL) as packs:
        alone, state = described(take(packs, 8)), packs.state_dict()
    together: dict[tuple[int, int], tuple] = {}
    states: dict[str, LaneState] = {}
    for lanes in ((3,), (0, 2), (1,)):  # three processes
        with loader(PHOTOS, replace(SMALL, workers=workers, prefetch=prefetch), lanes) as packs:
            together |= described(take(packs, 8))
            states |= packs.state_dict()
    assert together == alone
    assert states == state


@pytest.mark.parametrize("before", [((0, 1, 2, 3),), ((0,), (1, 3), (2,))])
@pytest.mark.parametrize("after", [((0, 1, 2, 3),), ((0, 1), (2, 3))])
def test_a_resumed_run_goes_on_exactly(before: tuple, after: tuple) -> None:
    broken = Pictures(list(PHOTOS.images))
    broken.images[7] = b"not a picture"
    broken.images[9] = broken.images[9][:-100]
    with loader(broken, SMALL) as packs:
        whole = take(packs, 12)
        report, state = packs.summary(), packs.state_dict()
    assert report.startswith("38 records used") and " 2 skipped: 1 x not a readable" in report  # several epochs
    saved: dict[str, Any] = {}
    for lanes in before:
        with loader(broken, SMALL, lanes) as packs:
            take(packs, 5)
            saved |= saved_by(packs)
    assert len(str(saved)) < 4 * 2000
    resumed: dict[tuple[int, int], tuple] = {}
    states: dict[str, LaneState] = {}
    reports = []
    for lanes in after:
        with loader(broken, replace(SMALL, workers=4, prefetch=5), lanes) as packs:
            packs.load_state_dict(saved)
            resumed |= described(take(packs, 7))
            reports.append(packs.report())
            states |= packs.state_dict()
    assert resumed == described([pack for pack in whole if pack.number >= 5])
    assert describe(reports) == report
    assert states == state


def test_the_state_after_a_pack_does_not_depend_on_what_is_built_ahead() -> None:
    with loader(PHOTOS, replace(SMALL, prefetch=5), [2]) as packs:
        take(packs, 1)
        state = saved_by(packs)
        second = take(packs, 1)
    with loader(PHOTOS, SMALL, [2]) as packs:
        packs.load_state_dict(state)
        assert packs.state_dict() == state
        assert described(take(packs, 1)) == described(second)


def test_a_state_that_does_not_fit_is_refused() -> None:
    with loader(PHOTOS, SMALL) as packs:
        next(packs)
        saved = packs.state_dict()
    with loader(PHOTOS, replace(SMALL, packs_per_step=2)) as packs, pytest.raises(UserError, match="packs_per_step 4"):
        packs.load_state_dict(saved)
    with loader(Pictures(PHOTOS.images[:-1]), SMALL) as packs, pytest.raises(UserError, match="had 40 records"):
        packs.load_state_dict(saved)
    with loader(PHOTOS, SMALL) as packs, pytest.raises(UserError, match=r"no data state for lanes \[3\]"):
        packs.load_state_dict({lane: state for lane, state in saved.items() if lane != "3"})


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        ("records", "40", r"records is '40', not a whole number"),
        ("next.streams.source.epoch", -1, "epoch is -1; it must be at least 0"),
        ("next.streams.source.position", 41, "stands beyond its 40 records"),
        ("next.waiting", {"": [[40, 0]]}, "stands beyond its 40 records"),
        ("next.waiting", {"reca": [[4, 0]]}, "saved lane 0 is damaged: it belongs to other settings of data.tasks"),
        ("next.streams", {}, "it belongs to other settings of data.tasks"),
        ("next", None, "holds no settings"),
        ("outcomes.skipped", {"odd": {"records": "eA==", "examples": []}}, "saved lane 0 is damaged"),
        ("outcomes.skipped", {"odd": {"records": "eJwDAAAAAAE=", "examples": []}}, "another number of records"),
        ("outcomes.skipped", {"odd": {"records": "é", "examples": []}}, "saved lane 0 is damaged"),
    ],
)
def test_a_damaged_state_is_one_sentence(place: str, value: object, sentence: str) -> None:
    with loader(PHOTOS, SMALL) as packs:
        next(packs)
        lanes = {lane: asdict(state) for lane, state in packs.state_dict().items()}
    *above, name = place.split(".")
    reduce(getitem, above, lanes["0"])[name] = value
    with loader(PHOTOS, SMALL) as packs, pytest.raises(UserError, match=sentence):
        packs.load_state_dict({lane: from_dict(LaneState, json.loads(json.dumps(lanes[lane])), lane) for lane in lanes})


def test_fewer_records_than_lanes() -> None:
    with loader(Pictures(PHOTOS.images[:3]), SMALL) as packs:
        keys = [set(pack.keys) for pack in next(packs)]
    assert all(keys)
    assert set.union(*keys) == {"000.jpg", "001.jpg", "002.jpg"}


def test_each_epoch_uses_one_of_several_captions() -> None:
    names = ("one", "one two", "one two three")
    config = replace(SMALL, tasks=TaskWeights(reca=0.0, t2i=1.0), text_dropout=0.0)
    builder = builder_of(config)

    def drawn(epoch: int, seed: int = config.seed) -> list[int]:
        builder = builder_of(replace(config, seed=seed))
        return [len(builder.plan(i, f"{i}", (64, 64), names, epoch).text.ids) for i in range(300)]

    first = drawn(0)
    assert first == drawn(0)
    assert first != drawn(1) and first != drawn(0, seed=7)
    assert all(80 < first.count(length) < 120 for length in (1, 2, 3))
    assert len(builder.plan(0, "a", (64, 64), "one two", 5).text.ids) == 2
    source = Pictures(PHOTOS.images, [names] * 40)
    with loader(source, config) as packs:
        whole = described(take(packs, 12))
    with loader(source, config) as packs:
        take(packs, 6)
        state = saved_by(packs)
    with loader(source, config) as packs:
        packs.load_state_dict(state)
        assert described(take(packs, 6)) == {place: pack for place, pack in whole.items() if place[1] >= 6}


# --- threads


def test_errors_in_threads_reach_the_caller() -> None:
    def broken(samples: list[Sample], draw: torch.Generator) -> None:
        raise RuntimeError("collate is broken")

    with loader(PHOTOS, SMALL, collate=broken) as packs, pytest.raises(RuntimeError, match="collate is broken"):
        next(packs)
    source = Pictures([*PHOTOS.images[:-1], MemoryError("no room")])
    with loader(source, SMALL) as packs, pytest.raises(MemoryError, match="no room"):
        take(packs, 20)


def test_packs_are_built_ahead_and_close_is_prompt() -> None:
    built = threading.Semaphore(0)

    def slow(samples: list[Sample], draw: torch.Generator) -> list[Sample]:
        time.sleep(0.02)
        built.release()
        return samples

    packs = loader(PHOTOS, replace(SMALL, packs_per_step=1, prefetch=3), collate=slow)
    next(packs)
    assert all(built.acquire(timeout=5) for _ in range(4))  # the one handed out and three more
    assert not built.acquire(timeout=0.1)
    next(packs)
    start = time.perf_counter()
    packs.close()
    assert time.perf_counter() - start < 0.5
    assert not [t for t in threading.enumerate() if t.name.startswith("reca-")]


def test_from_files_to_packs(tmp_path: Path) -> None:
    for i, image in enumerate(PHOTOS.images):
        (tmp_path / f"{i:03d}.jpg").write_bytes(image)
    config = replace(SMALL, source=str(tmp_path), resize="exact")
    with loader(open_source(config), config) as packs:
        from_files = take(packs, 2)
    with loader(PHOTOS, config) as packs:
        assert described(from_files) == described(take(packs, 2))
    sample = from_files[0].batch[0]
    original = np.asarray(Image.open(tmp_path / sample.key))
    expected = Image.fromarray(original).resize(tuple(sample.target.shape[1::-1]), Image.Resampling.BICUBIC)
    assert np.array_equal(sample.target.numpy(), np.asarray(expected))


@pytest.mark.parametrize("option", ["packs_per_step", "tokens_per_pack", "workers", "lookahead"])
def test_settings_below_one_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=f"data.{option}=0"):
        loader(PHOTOS, replace(SMALL, **{option: 0}), lanes=[0])


def test_prefetch_below_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.prefetch=-1"):
        loader(PHOTOS, replace(SMALL, prefetch=-1))
