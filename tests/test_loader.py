"""The loader: packs depend on settings alone, resume is exact, bad records are skipped and counted, errors arrive."""

import io
import json
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photos

from reca_fast.config import DataConfig, ResizeConfig, TaskWeights
from reca_fast.data.images import BadRecord
from reca_fast.data.loader import Pack, PackLoader, describe, epoch_order
from reca_fast.data.samples import SampleBuilder
from reca_fast.data.sources import Record, open_source
from reca_fast.errors import UserError
from reca_fast.flow import I2T, RECA, T2I, Sample
from reca_fast.train.grids import pick_samples

SMALL = DataConfig(
    vit_resize=ResizeConfig(56, 56, 14),
    vae_resize=ResizeConfig(96, 48, 16),
    tokens_per_pack=200,
    max_tokens_per_sample=180,
    packs_per_step=4,
    lookahead=8,
)


@dataclass
class Pictures:
    """A source in memory; what an exception stands for is raised when the record is read."""

    images: list[bytes | Exception]
    captions: Sequence[str | None] = ()
    damaged: Sequence[str] = ()

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


def words(text: str) -> list[int]:
    return [len(word) for word in text.split()]


def loader(source: Any, config: DataConfig, lanes: Sequence[int] | None = None, collate: Any = list) -> PackLoader:
    lanes = range(config.packs_per_step) if lanes is None else lanes
    return PackLoader(source, SampleBuilder(config, words), config, collate, lanes)


def take(packs: PackLoader, steps: int) -> list[Pack]:
    return [pack for _ in range(steps) for pack in next(packs)]


def described(packs: list[Pack]) -> dict[tuple[int, int], tuple]:
    """{(lane, number): all that the pack holds}, with pixels by their sum."""

    def sample(s: Sample) -> tuple:
        pixels = [None if image is None else int(image.long().sum()) for image in (s.vit_image, s.vae_image)]
        return s.key, s.task, s.prompt_ids, *pixels

    return {(p.lane, p.number): (p.keys, p.num_tokens, p.state, [sample(s) for s in p.payload]) for p in packs}


def test_a_reca_sample_is_three_splits() -> None:
    builder = SampleBuilder(DataConfig(text_dropout=0.0), lambda text: range(21))
    plan = builder.plan(0, "a.jpg", 1024, 1024, None, epoch=0)
    assert (plan.task, plan.vit_size, plan.vae_size) == (RECA, (224, 224), (1024, 1024))
    assert plan.num_tokens == 258 + 23 + 4098 == 4379
    dropped = SampleBuilder(DataConfig(text_dropout=1.0), lambda text: range(21)).plan(0, "a", 1024, 1024, None, 0)
    assert dropped.prompt_ids is None
    assert dropped.num_tokens == 258 + 4098  # the markers go with the text


def test_other_tasks_have_two_splits_and_use_the_caption() -> None:
    def plan(task: str, dropout: float, caption: str | None = "a red cat") -> Any:
        config = replace(SMALL, tasks=TaskWeights(**{"reca": 0.0, task: 1.0}), text_dropout=dropout)
        return SampleBuilder(config, words).plan(0, "a", 96, 96, caption, 0)

    t2i, i2t = plan(T2I, 0.0), plan(I2T, 1.0)
    assert (t2i.prompt_ids, t2i.vit_size, t2i.num_tokens) == ((1, 3, 3), None, 36 + 2 + 5)
    assert (i2t.prompt_ids, i2t.vae_size, i2t.num_tokens) == ((1, 3, 3), None, 16 + 2 + 5)  # i2t never drops its target
    assert plan(T2I, 1.0).prompt_ids is None
    with pytest.raises(BadRecord, match="no caption"):
        plan(T2I, 0.0, caption=None)


def test_tasks_are_drawn_by_weight_and_fall_back_to_reca() -> None:
    config = replace(SMALL, tasks=TaskWeights(reca=1.0, t2i=2.0, i2t=1.0))
    builder = SampleBuilder(config, words)
    drawn = [builder.plan(i, f"{i}", 64, 64, "a cat", 0).task for i in range(4000)]
    for task, share in ((RECA, 0.25), (T2I, 0.5), (I2T, 0.25)):
        assert abs(drawn.count(task) / 4000 - share) < 0.03
    assert {builder.plan(i, f"{i}", 64, 64, None, 0).task for i in range(50)} == {RECA}


def test_text_dropout_has_its_rate_and_changes_with_the_epoch() -> None:
    builder = SampleBuilder(DataConfig(text_dropout=0.1), words)

    def flags_in(epoch: int) -> list[bool]:
        return [builder.plan(i, f"{i}", 64, 64, None, epoch).prompt_ids is None for i in range(4000)]

    dropped = [flags_in(0), flags_in(1)]
    assert all(abs(sum(flags) / 4000 - 0.1) < 0.02 for flags in dropped)
    assert dropped[0] != dropped[1]


def test_build_resizes_and_blurs_as_planned() -> None:
    record = PHOTOS.read(3)
    sharp, blurred = (SampleBuilder(replace(SMALL, blur_sigma=sigma), words) for sigma in (0.0, 2.0))
    with Image.open(io.BytesIO(record.image)) as picture:
        plan = sharp.plan(3, record.key, *picture.size, None, 0)
    sample, soft = sharp.build(record, plan), blurred.build(record, plan)
    assert sample.vit_image.shape == (plan.vit_size[1], plan.vit_size[0], 3)
    assert sample.vae_image.shape == (plan.vae_size[1], plan.vae_size[0], 3)
    assert soft.vit_image.float().std() < sample.vit_image.float().std()
    assert torch.equal(soft.vae_image, sample.vae_image)  # the target stays sharp
    with pytest.raises(BadRecord, match="changed since"):
        sharp.build(PHOTOS.read(4), plan)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"vit_resize": ResizeConfig(224, 224, 16)}, "vit_resize.stride is 16; this model needs a multiple of 14"),
        ({"vae_resize": ResizeConfig(64, 128, 16)}, "min_size 128"),
        ({"tasks": TaskWeights(reca=0.0)}, "at least one weight must be above 0"),
        ({"tasks": TaskWeights(reca=2.0, t2i=-1.0)}, r"data\.tasks\.t2i=-1\.0: it must be at least 0"),
        ({"text_dropout": 1.5}, r"data\.text_dropout=1\.5: it must be at least 0 and at most 1"),
        ({"blur_sigma": -1.0}, r"data\.blur_sigma=-1\.0"),
        ({"max_image_pixels": 0}, r"data\.max_image_pixels=0"),
        ({"vit_resize": ResizeConfig(56, 56, 14, max_pixels=0)}, r"data\.vit_resize\.max_pixels=0"),
    ],
)
def test_impossible_settings_are_refused(change: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        SampleBuilder(replace(SMALL, **change), words)


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
        alone = described(take(packs, 8))
    together = {}
    for lanes in ((3,), (0, 2), (1,)):  # three processes
        with loader(PHOTOS, replace(SMALL, workers=workers, prefetch=prefetch), lanes) as packs:
            together |= described(take(packs, 8))
    assert together == alone


@pytest.mark.parametrize("before", [((0, 1, 2, 3),), ((0,), (1, 3), (2,))])
@pytest.mark.parametrize("after", [((0, 1, 2, 3),), ((0, 1), (2, 3))])
def test_a_resumed_run_goes_on_exactly(before: tuple, after: tuple) -> None:
    broken = Pictures(list(PHOTOS.images))
    broken.images[7] = b"not a picture"
    broken.images[9] = broken.images[9][:-100]
    with loader(broken, SMALL) as packs:
        whole = take(packs, 12)
        counts = packs.skipped
    saved: dict[str, Any] = {}
    for lanes in before:
        with loader(broken, SMALL, lanes) as packs:
            take(packs, 5)
            saved |= packs.state_dict()
    saved = json.loads(json.dumps(saved))
    assert len(json.dumps(saved)) < 4 * 2000
    resumed, skipped = {}, {}
    for lanes in after:
        with loader(broken, replace(SMALL, workers=4, prefetch=5), lanes) as packs:
            packs.load_state_dict(saved)
            resumed |= described(take(packs, 7))
            for reason, count in packs.skipped.items():
                skipped[reason] = skipped.get(reason, 0) + count
    assert resumed == described([pack for pack in whole if pack.number >= 5])
    assert skipped == counts
    assert len(counts) == 2


def test_every_pack_carries_the_state_to_go_on_after_it() -> None:
    with loader(PHOTOS, SMALL, [2]) as packs:
        first, second = take(packs, 2)
        assert packs.state_dict() == {"2": second.state}
    with loader(PHOTOS, SMALL, [2]) as packs:
        packs.load_state_dict({"2": first.state})
        assert described(take(packs, 1)) == described([second])


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
            assert len(pack.payload) == len(pack.keys) > 0
    assert sorted(keys[:37]) == [source.key(i) for i in range(3, 40)]
    assert packs.skipped == {"not a readable picture": 1, "truncated or damaged picture": 1, "unreadable file": 1}
    assert packs.summary() == (
        f"{len(keys)} samples used, 3 records skipped: 1 x not a readable picture (e.g. 000.jpg); "
        "1 x truncated or damaged picture (e.g. 001.jpg); 1 x unreadable file (e.g. 002.jpg)"
    )


def test_reports_of_all_processes_become_one_line() -> None:
    source = Pictures([*PHOTOS.images[:-1], b"not a picture"], damaged=["cut.tar"])
    with loader(source, replace(SMALL, packs_per_step=2, shuffle=False), [1]) as packs:
        while not packs.skipped:
            next(packs)
        report = json.loads(json.dumps(packs.report()))
        assert packs.summary() == describe([report])
    other = {
        "samples": 5,
        "without_caption": 2,
        "skipped": {"a": 2},
        "examples": {"a": ["x"]},
        "damaged": ["cut.tar", "b.tar"],
    }
    assert describe([report, other]) == (
        f"{report['samples'] + 5} samples used, 3 records skipped: 2 x a (e.g. x); "
        "1 x not a readable picture (e.g. 039.jpg); 2 samples without a caption served reca; "
        "2 damaged shards, read as far as they go: b.tar, cut.tar"
    )
    assert packs.summary().endswith("; 1 damaged shard, read as far as it goes: cut.tar")


def test_too_long_samples_are_skipped() -> None:
    config = replace(SMALL, packs_per_step=1, max_tokens_per_sample=60)
    with loader(PHOTOS, config) as packs:
        assert all(pack.num_tokens <= 60 * len(pack.keys) for pack in take(packs, 10))
    assert set(packs.skipped) == {"longer than data.max_tokens_per_sample"}


@pytest.mark.parametrize("spoil", [lambda image: b"nothing", lambda image: image[:-100]], ids=["header", "pixels"])
def test_data_without_one_usable_record_is_refused(spoil: Any) -> None:
    source = Pictures([spoil(image) for image in PHOTOS.images])
    with loader(source, SMALL) as packs, pytest.raises(UserError, match=r"None of the 10 records .* 10 x .*Check"):
        next(packs)


@pytest.mark.parametrize(
    ("change", "way_out"),
    [
        ({"tokens_per_pack": 30}, r"Raise data\.tokens_per_pack to at least (\d+), which the shortest sample needs\.$"),
        (
            {"max_tokens_per_sample": 30, "tokens_per_pack": 31},
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
        state, summary = json.loads(json.dumps(packs.state_dict())), packs.summary()
        assert summary.endswith(f"{packs.report()['samples']} samples without a caption served reca")
    with loader(PHOTOS, config) as packs:
        packs.load_state_dict(state)
        assert packs.summary() == summary
    with loader(Pictures(PHOTOS.images, ["a cat"] * 40), config) as packs:
        take(packs, 4)
        assert "caption" not in packs.summary()


@pytest.mark.parametrize("task", [RECA, T2I, I2T])
def test_grids_have_pictures_whatever_is_trained(task: str) -> None:
    config = replace(SMALL, tasks=TaskWeights(**{RECA: 0.0, task: 1.0}))
    source = Pictures([b"not a picture", *PHOTOS.images])
    samples = pick_samples(source, SampleBuilder(config, words), 3)
    assert [(s.key, s.task) for s in samples] == [(source.key(i), RECA) for i in (1, 2, 3)]
    assert all(s.vit_image is not None and s.vae_image is not None for s in samples)


def test_one_usable_record_is_enough() -> None:
    source = Pictures([b"nothing" if i % 2 else image[:-100] for i, image in enumerate(PHOTOS.images)])
    source.images[17] = PHOTOS.images[17]
    with loader(source, replace(SMALL, packs_per_step=1)) as packs:
        assert {key for pack in take(packs, 5) for key in pack.keys} == {"017.jpg"}


# --- threads


def test_errors_in_threads_reach_the_caller() -> None:
    def broken(samples: list[Sample]) -> None:
        raise RuntimeError("collate is broken")

    with loader(PHOTOS, SMALL, collate=broken) as packs, pytest.raises(RuntimeError, match="collate is broken"):
        next(packs)
    source = Pictures([*PHOTOS.images[:-1], MemoryError("no room")])
    with loader(source, SMALL) as packs, pytest.raises(MemoryError, match="no room"):
        take(packs, 20)


def test_packs_are_built_ahead_and_close_is_prompt() -> None:
    built = threading.Semaphore(0)

    def slow(samples: list[Sample]) -> list[Sample]:
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
    sample = from_files[0].payload[0]
    original = np.asarray(Image.open(tmp_path / sample.key))
    expected = Image.fromarray(original).resize(tuple(sample.vae_image.shape[1::-1]), Image.Resampling.BICUBIC)
    assert np.array_equal(sample.vae_image.numpy(), np.asarray(expected))


@pytest.mark.parametrize("option", ["packs_per_step", "tokens_per_pack", "workers", "lookahead"])
def test_settings_below_one_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=f"data.{option}=0"):
        loader(PHOTOS, replace(SMALL, **{option: 0}), lanes=[0])


def test_prefetch_below_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.prefetch=-1"):
        loader(PHOTOS, replace(SMALL, prefetch=-1))
