"""Records that cannot be used are skipped, counted once and named; data without one usable record are refused."""

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest

from reca_fast.config import TaskWeights
from reca_fast.data.outcomes import describe
from reca_fast.data.reasons import Reasons
from reca_fast.data.records import BadRecord
from reca_fast.data.sources import Record
from reca_fast.errors import UserError
from tests.data.packs import PHOTOS, SMALL, Pictures, epoch, loader, saved_by, take


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
