"""Pools of the toy world as a source: the pictures and captions of the world, in the order of their numbers."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from reca_fast import toy
from reca_fast.config import DataConfig, TaskWeights
from reca_fast.data.captions import choose_caption
from reca_fast.data.identity import identities, identity_of_source
from reca_fast.data.joined import open_data
from reca_fast.errors import UserError
from tests.data.packs import SMALL, described, loader, saved_by, take
from tests.data.sources.records import opened


def test_a_pool_gives_the_pictures_and_captions_of_the_world() -> None:
    for pool, kind in toy.POOLS.items():
        both, sparse, dense = (opened(f"toy:{pool}", caption_name=name) for name in ("", "sparse", "dense"))
        assert len(both) == kind.size and not both.ignored
        for index in (0, 1, kind.size - 1):
            scene = toy.scene_of(pool, index)
            record, captions = both.read(index), toy.captions_of(scene, pool, index)
            picture = np.asarray(Image.open(io.BytesIO(record.image)))
            assert np.array_equal(picture, toy.render(scene, pool, index))
            assert record.key == both.key(index) == f"{pool}/{index:06d}"
            assert record.caption == (captions["sparse"], captions["dense"])
            assert (sparse.read(index).caption, dense.read(index).caption) == record.caption
            assert {choose_caption(record.caption, 0, epoch, record.key) for epoch in range(20)} == {*record.caption}


def test_reading_in_threads_gives_the_same_pictures() -> None:
    source = opened("toy:base", caption_name="sparse")
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(source.read, range(64))) == [source.read(index) for index in range(64)]


def test_a_resumed_run_knows_a_pool_again_and_tells_it_from_others() -> None:
    """By what a checkpoint keeps of its data."""
    config = DataConfig(source="toy:validation", caption_name="dense")
    assert identities(open_data(config)) == {"data.source": identity_of_source(opened("toy:validation"))}
    assert identity_of_source(opened("toy:validation")) != identity_of_source(opened("toy:posttraining"))
    assert len(open_data(replace(config, limit=100))) == 100


def test_a_resumed_run_goes_on_with_the_same_pictures_and_captions() -> None:
    settings = replace(SMALL, source="toy:base", caption_name="dense", tasks=TaskWeights(reca=1, t2i=1))
    with loader(open_data(settings), settings) as packs:
        whole = take(packs, 6)
    with loader(open_data(settings), settings) as packs:
        take(packs, 3)
        saved = saved_by(packs)
    with loader(open_data(settings), replace(settings, workers=4, prefetch=0)) as packs:
        packs.load_state_dict(saved)
        assert described(take(packs, 3)) == described([pack for pack in whole if pack.number >= 3])


def test_what_is_no_pool_is_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"no pool 'bass'; its pools are understanding, .*Did you mean 'base'"):
        opened("toy:bass")
    assert opened("toy:base", caption_name="long").read(0).lack == "no caption called 'long'"
