"""The loader: packs depend on settings alone, resume is exact, bad records are skipped and counted, errors arrive."""

import io
import json
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage import data as photos

from reca_fast.config import DataConfig, ResizeConfig, TaskWeights
from reca_fast.data.lanes import LaneState, epoch_order
from reca_fast.data.loader import Pack, PackLoader
from reca_fast.data.outcomes import describe
from reca_fast.data.records import BadRecord
from reca_fast.data.sources import Record, open_source
from reca_fast.data.tally import Reasons
from reca_fast.errors import UserError
from reca_fast.evaluation.grids import pick_samples
from reca_fast.sample import I2T, RECA, T2I, Sample, Text
from reca_fast.schema import fill
from tests.builders import builder_of

SMALL = DataConfig(
    condition_resize=ResizeConfig(56, 56, 14),
    target_resize=ResizeConfig(96, 48, 16),
    tokens_per_pack=200,
    max_tokens_per_sample=180,
    packs_per_step=4,
    lookahead=8,
)


@dataclass
class Pictures:
    """A source in memory; what an exception stands for is raised when the record is read."""

    images: list[bytes | Exception]
    captions: Sequence[str | tuple[str, ...] | None] = ()
    ignored: Reasons = field(default_factory=Reasons)

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        return f"{index:03d}.jpg"

    def read(self, index: int) -> Record:
        image = self.images[index]
        if isinstance(image, Exception):
            raise image
        return Record(self.key(index), image, self.captions[index] if self.captions else None)


def jpegs(count: int) -> list[bytes]:
    """Photos cut and scaled to `count` different sizes."""
    source = Image.fromarray(photos.astronaut()).resize((128, 128))
    images = []
    for i in range(count):
        out = io.BytesIO()
        source.resize((48 + 7 * i % 90, 48 + 11 * i % 90)).save(out, "JPEG", quality=90)
        images.append(out.getvalue())
    return images


PHOTOS = Pictures(jpegs(40))


def as_list(samples: list[Sample], draw: torch.Generator) -> list[Sample]:
    """A batch that is the samples themselves."""
    return samples


def loader(source: Any, config: DataConfig, lanes: Sequence[int] | None = None, collate: Any = as_list) -> PackLoader:
    lanes = range(config.packs_per_step) if lanes is None else lanes
    return PackLoader(source, builder_of(config), config, collate, lanes)


def take(packs: PackLoader, steps: int) -> list[Pack]:
    return [pack for _ in range(steps) for pack in next(packs)]


def saved_by(packs: PackLoader) -> dict[str, LaneState]:
    """The loader's state after a round trip through a file."""
    lanes = json.loads(json.dumps({lane: asdict(state) for lane, state in packs.state_dict().items()}))
    return {lane: fill(LaneState, state, f"lane {lane}") for lane, state in lanes.items()}


def epoch(packs: PackLoader) -> int:
    """In which the first lane stands."""
    return next((state.next.epoch for state in packs.state_dict().values()), 0)


def described(packs: list[Pack]) -> dict[tuple[int, int], tuple]:
    """{(lane, number): all that the pack holds}, with pixels by their sum."""

    def sample(s: Sample) -> tuple:
        pixels = [None if image is None else int(image.long().sum()) for image in (s.condition, s.target)]
        return s.key, s.tasks, s.text, *pixels

    return {(p.lane, p.number): (p.keys, p.num_tokens, [sample(s) for s in p.batch]) for p in packs}


def test_a_reca_sample_is_three_splits() -> None:
    builder = builder_of(DataConfig(text_dropout=0.0), lambda text: range(21))
    plan = builder.plan(0, "a.jpg", (1024, 1024), None, epoch=0)
    assert (plan.tasks, plan.plan.condition, plan.plan.target) == ((RECA,), (224, 224), (1024, 1024))
    assert plan.num_tokens == 258 + 23 + 4098 == 4379
    dropped = builder_of(DataConfig(text_dropout=1.0), lambda text: range(21)).plan(0, "a", (1024, 1024), None, 0)
    assert dropped.text is None
    assert dropped.num_tokens == 258 + 4098  # the markers go with the text


def test_other_tasks_have_two_splits_and_use_the_caption() -> None:
    def plan(task: str, dropout: float, caption: str | None = "a red cat") -> Any:
        config = replace(SMALL, tasks=TaskWeights(**{"reca": 0.0, task: 1.0}), text_dropout=dropout)
        return builder_of(config).plan(0, "a", (96, 96), caption, 0)

    t2i, i2t = plan(T2I, 0.0), plan(I2T, 1.0)
    assert (t2i.text, t2i.plan.condition, t2i.num_tokens) == (Text((1, 3, 3)), None, 36 + 2 + 5)
    assert (i2t.text, i2t.plan.target, i2t.num_tokens) == (
        Text((1, 3, 3), True),
        None,
        16 + 2 + 5,
    )  # i2t never drops its target
    assert plan(T2I, 1.0).text is None
    with pytest.raises(BadRecord, match="no caption"):
        plan(T2I, 0.0, caption=None)


def test_tasks_are_drawn_by_weight_and_fall_back_to_reca() -> None:
    config = replace(SMALL, tasks=TaskWeights(reca=1.0, t2i=2.0, i2t=1.0))
    builder = builder_of(config)
    drawn = [builder.plan(i, f"{i}", (64, 64), "a cat", 0).tasks[0] for i in range(4000)]
    for task, share in ((RECA, 0.25), (T2I, 0.5), (I2T, 0.25)):
        assert abs(drawn.count(task) / 4000 - share) < 0.03
    assert {builder.plan(i, f"{i}", (64, 64), None, 0).tasks for i in range(50)} == {(RECA,)}


def test_text_dropout_has_its_rate_and_changes_with_the_epoch() -> None:
    builder = builder_of(DataConfig(text_dropout=0.1))

    def flags_in(epoch: int) -> list[bool]:
        return [builder.plan(i, f"{i}", (64, 64), None, epoch).text is None for i in range(4000)]

    dropped = [flags_in(0), flags_in(1)]
    assert all(abs(sum(flags) / 4000 - 0.1) < 0.02 for flags in dropped)
    assert dropped[0] != dropped[1]


def test_build_resizes_and_blurs_as_planned() -> None:
    record = PHOTOS.read(3)
    sharp, blurred = (builder_of(replace(SMALL, blur_sigma=sigma)) for sigma in (0.0, 2.0))
    with Image.open(io.BytesIO(record.image)) as picture:
        plan = sharp.plan(3, record.key, picture.size, None, 0)
    sample, soft = sharp.build(record, plan), blurred.build(record, plan)
    assert sample.condition.shape == (plan.plan.condition[1], plan.plan.condition[0], 3)
    assert sample.target.shape == (plan.plan.target[1], plan.plan.target[0], 3)
    assert soft.condition.float().std() < sample.condition.float().std()
    assert torch.equal(soft.target, sample.target)  # the target stays sharp
    with pytest.raises(BadRecord, match="changed since"):
        sharp.build(PHOTOS.read(4), plan)


@pytest.mark.parametrize("turn", [1, 3, 5, 6, 8])
def test_photographs_are_planned_and_built_upright(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    out = io.BytesIO()
    Image.fromarray(photos.coffee()).resize((120, 80)).save(out, "JPEG", exif=exif)
    record = Record("a.jpg", out.getvalue(), None)
    shown = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(record.image))))
    for orientation, method, allowed in (("apply", "exact", 0), ("apply", "fast", 5), ("ignore", "fast", 0)):
        builder = builder_of(replace(SMALL, orientation=orientation, resize=method))
        size = builder.picture_size(record.image)
        assert size == (shown.shape[1::-1] if orientation == "apply" else (120, 80))
        plan = builder.plan(0, record.key, size, None, 0)
        sample = builder.build(record, plan)
        assert sample.condition.shape[1::-1] == plan.plan.condition
        assert sample.target.shape[1::-1] == plan.plan.target
        if orientation == "apply":
            expected = np.array(Image.fromarray(shown).resize(plan.plan.target, Image.Resampling.BICUBIC)).astype(int)
            assert abs(sample.target.numpy() - expected).max() <= allowed


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"condition_resize": ResizeConfig(224, 224, 16)},
            "condition_resize.stride is 16; this model needs a multiple of 14",
        ),
        ({"target_resize": ResizeConfig(64, 128, 16)}, "min_size 128"),
        ({"tasks": TaskWeights(reca=0.0)}, "at least one weight must be above 0"),
        ({"tasks": TaskWeights(reca=2.0, t2i=-1.0)}, r"data\.tasks\.t2i=-1\.0: it must be at least 0"),
        ({"text_dropout": 1.5}, r"data\.text_dropout=1\.5: it must be at least 0 and at most 1"),
        ({"blur_sigma": -1.0}, r"data\.blur_sigma=-1\.0"),
        ({"max_image_pixels": 0}, r"data\.max_image_pixels=0"),
        ({"condition_resize": ResizeConfig(56, 56, 14, max_pixels=0)}, r"data\.condition_resize\.max_pixels=0"),
    ],
)
def test_impossible_settings_are_refused(change: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        builder_of(replace(SMALL, **change))


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
    together, states = {}, {}
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
    resumed, reports, states = {}, [], {}
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
        ("next.epoch", -1, "epoch is -1; it must be at least 0"),
        ("next.position", 41, "stands beyond its 40 records"),
        ("next.waiting", [[40, 0]], "stands beyond its 40 records"),
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
        packs.load_state_dict({lane: fill(LaneState, json.loads(json.dumps(lanes[lane])), lane) for lane in lanes})


def test_fewer_records_than_lanes() -> None:
    with loader(Pictures(PHOTOS.images[:3]), SMALL) as packs:
        keys = [set(pack.keys) for pack in next(packs)]
    assert all(keys)
    assert set.union(*keys) == {"000.jpg", "001.jpg", "002.jpg"}


# --- bad records


def test_bad_records_are_skipped_counted_and_named() -> None:
    source = Pictures(list(PHOTOS.images))
    source.images[0] = b"not a picture"
    source.images[1] = source.images[1][:-100]  # its header is fine: found when its pack is built
    source.images[2] = BadRecord("unreadable file", "gone")
    config = replace(SMALL, packs_per_step=1, shuffle=False, prefetch=0, lookahead=1)
    with loader(source, config) as packs:
        keys: list[str] = []
        while len(keys) < 37:
            [pack] = next(packs)
            keys += pack.keys
            assert len(pack.batch) == len(pack.keys) > 0
    assert sorted(keys[:37]) == [source.key(i) for i in range(3, 40)]
    assert packs.summary() == (
        f"37 records used ({len(keys)} samples), 3 skipped: 1 x not a readable picture (e.g. 000.jpg); "
        "1 x truncated or damaged picture (e.g. 001.jpg); 1 x unreadable file (e.g. 002.jpg)"
    )


@pytest.mark.parametrize("lanes", [1, 3, 8], ids="{} lanes".format)
def test_a_record_counts_once_whatever_the_number_of_epochs(lanes: int) -> None:
    source = Pictures([*PHOTOS.images[:6], b"not a picture"])
    with loader(source, replace(SMALL, packs_per_step=lanes, lookahead=1)) as packs:
        while epoch(packs) < 4:
            next(packs)
        assert re.fullmatch(
            r"6 records used \(\d+ samples\), 1 skipped: 1 x not a readable picture \(e\.g\. 006\.jpg\)",
            packs.summary(),
        )


def test_what_is_used_counts_before_its_first_epoch_is_over() -> None:
    # The buffer holds plans of several epochs of seven records: a record may be used in the second one first.
    source = Pictures(PHOTOS.images[:7])
    with loader(source, replace(SMALL, packs_per_step=1, lookahead=64)) as packs:
        used: set[str] = set()
        for _ in range(4):
            [pack] = next(packs)
            used |= set(pack.keys)
            assert packs.summary().startswith(f"{len(used)} records used")


def test_a_record_that_is_skipped_in_some_epochs_counts_as_used() -> None:
    # The templates' lengths change with the epoch.
    config = replace(SMALL, packs_per_step=1, max_tokens_per_sample=60, lookahead=1, text_dropout=0.0)
    used: set[str] = set()
    with loader(Pictures(PHOTOS.images[:7]), config) as packs:
        for _ in range(30):
            used |= {key for pack in next(packs) for key in pack.keys}
        summary = packs.summary()
    kept, skipped, sometimes = map(int, re.findall(r"(\d+) (?:records used|skipped|used in some)", summary))
    assert kept == len(used)
    assert kept + skipped == 7
    assert sometimes > 0


def test_reports_of_all_processes_become_one_line() -> None:
    ignored = Reasons()
    ignored.add(".txt", "notes.txt")
    source = Pictures([*PHOTOS.images[:-1], b"not a picture"], ignored=ignored)
    config = replace(SMALL, packs_per_step=2)
    reports = []
    for lane in (0, 1):
        with loader(source, config, [lane]) as packs:
            while epoch(packs) < 3:
                next(packs)
            reports.append(packs.report())
            assert packs.summary() == describe([packs.report()])
    assert re.fullmatch(
        r"39 records used \(\d+ samples\), 1 skipped: 1 x not a readable picture \(e\.g\. 039\.jpg\); "
        r"ignored: 1 x \.txt \(e\.g\. notes\.txt\)",
        describe(reports),
    )


def test_too_long_samples_are_skipped() -> None:
    config = replace(SMALL, packs_per_step=1, max_tokens_per_sample=60)
    with loader(PHOTOS, config) as packs:
        assert all(pack.num_tokens <= 60 * len(pack.keys) for pack in take(packs, 10))
    assert re.search(r"skipped: \d+ x longer than data\.max_tokens_per_sample \(e\.g\. ", packs.summary())


@pytest.mark.parametrize("spoil", [lambda image: b"nothing", lambda image: image[:-100]], ids=["header", "pixels"])
def test_data_without_one_usable_record_is_refused(spoil: Any) -> None:
    source = Pictures([spoil(image) for image in PHOTOS.images])
    with (
        loader(source, SMALL) as packs,
        pytest.raises(UserError, match=r"None of 40 records could be used: 40 x .*Check"),
    ):
        next(packs)


@pytest.mark.parametrize(
    ("change", "way_out"),
    [
        ({"tokens_per_pack": 25}, r"Raise data\.tokens_per_pack to at least (\d+), which the shortest sample needs\.$"),
        (
            {"max_tokens_per_sample": 25, "tokens_per_pack": 26},
            r"data\.max_tokens_per_sample and data\.tokens_per_pack",
        ),
        ({"tasks": TaskWeights(reca=0.0, t2i=1.0)}, r"Add captions, or give data\.tasks\.reca a weight\.$"),
    ],
)
def test_the_way_out_is_named(change: dict, way_out: str) -> None:
    with loader(PHOTOS, replace(SMALL, **change)) as packs, pytest.raises(UserError, match=way_out) as refused:
        next(packs)
    if needed := re.search(r"at least (\d+)", str(refused.value)):
        enough = dict.fromkeys(("tokens_per_pack", "max_tokens_per_sample"), int(needed[1]))
        with loader(PHOTOS, replace(SMALL, **enough, lookahead=1, prefetch=0), [0]) as packs:  # the refused lane
            next(packs)


def test_pictures_that_lack_their_caption_are_counted() -> None:
    config = replace(SMALL, tasks=TaskWeights(reca=0.001, t2i=1.0), packs_per_step=1)
    with loader(PHOTOS, config) as packs:
        take(packs, 4)
        state, summary = saved_by(packs), packs.summary()
        assert re.search(r"; (\d+) served reca for want of a caption: \1 x no caption \(e\.g\. .*\)$", summary)
    with loader(PHOTOS, config) as packs:
        packs.load_state_dict(state)
        assert packs.summary() == summary
    with loader(Pictures(PHOTOS.images, ["a cat"] * 40), config) as packs:
        take(packs, 4)
        assert "caption" not in packs.summary()


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


def test_the_reason_for_a_missing_caption_is_counted() -> None:
    @dataclass
    class Captionless(Pictures):
        def read(self, index: int) -> Record:
            lack = "empty caption" if index % 2 else "caption with NUL characters"
            return Record(self.key(index), self.images[index], None, lack)

    source = Captionless(PHOTOS.images[:4])
    only_captions = replace(SMALL, tasks=TaskWeights(reca=0.0, t2i=1.0), packs_per_step=1)
    with loader(source, only_captions) as packs, pytest.raises(UserError, match="Add captions") as refused:
        next(packs)
    assert "2 x caption with NUL characters" in str(refused.value)
    with loader(source, replace(only_captions, tasks=TaskWeights(reca=1e-9, t2i=1.0))) as packs:
        take(packs, 3)
        assert "4 served reca for want of a caption: 2 x caption with NUL characters" in packs.summary()


@pytest.mark.parametrize("task", [RECA, T2I, I2T])
def test_grids_have_pictures_whatever_is_trained(task: str) -> None:
    config = replace(SMALL, tasks=TaskWeights(**{RECA: 0.0, task: 1.0}))
    source = Pictures([b"not a picture", *PHOTOS.images])
    samples = pick_samples(source, builder_of(config), 3)
    assert [(s.key, s.tasks) for s in samples] == [(source.key(i), (RECA,)) for i in (1, 2, 3)]
    assert all(s.condition is not None and s.target is not None for s in samples)


def test_one_usable_record_is_enough() -> None:
    source = Pictures([b"nothing" if i % 2 else image[:-100] for i, image in enumerate(PHOTOS.images)])
    source.images[17] = PHOTOS.images[17]
    with loader(source, replace(SMALL, packs_per_step=1)) as packs:
        assert {key for pack in take(packs, 5) for key in pack.keys} == {"017.jpg"}


def test_a_lane_that_meets_bad_records_alone_waits_for_the_next_epochs() -> None:
    source = Pictures([b"nothing", b"nothing", *PHOTOS.images[:2]])
    with loader(source, replace(SMALL, packs_per_step=4)) as packs:  # one record a lane and epoch
        assert {key for pack in take(packs, 12) for key in pack.keys} == {"002.jpg", "003.jpg"}
    with (
        loader(source, replace(SMALL, packs_per_step=4, shuffle=False)) as packs,
        pytest.raises(UserError, match=r"None of 1 records .* with a lower number it is larger\.$"),
    ):
        next(packs)


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
