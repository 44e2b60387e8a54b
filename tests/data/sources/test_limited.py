"""A limit takes the first records of a shuffle that the seed alone decides, in the source's own order."""

import itertools
from dataclasses import replace

from reca_fast.config import DataConfig
from reca_fast.data.identity import identities
from reca_fast.data.joined import open_data
from reca_fast.data.sources.limited import LimitedSource
from tests.data.packs import PHOTOS, SMALL, loader, take


def keys(limit: int, seed: int = 42, last: int = 0) -> list[str]:
    source = LimitedSource(PHOTOS, limit, seed, last)
    assert [source.read(i).key for i in range(len(source))] == [source.key(i) for i in range(len(source))]
    return [source.key(i) for i in range(len(source))]


def test_smaller_limits_take_parts_of_larger_ones() -> None:
    several = [keys(limit) for limit in (1, 5, 20, 39)]
    for few, more in itertools.pairwise(several):
        assert set(few) < set(more)
    assert all(found == sorted(found) and len(found) == n for found, n in zip(several, (1, 5, 20, 39), strict=True))
    assert keys(20, seed=1) != keys(20)
    assert keys(3, last=10)[3:] == [PHOTOS.key(i) for i in range(30, 40)]  # what does not count is all there
    assert all(key < PHOTOS.key(30) for key in keys(3, last=10)[:3])


def test_every_epoch_draws_from_the_same_few() -> None:
    config = replace(SMALL, lookahead=4)
    source = LimitedSource(PHOTOS, 9, config.seed)
    with loader(source, config) as packs:
        assert {key for pack in take(packs, 12) for key in pack.keys} == {source.key(i) for i in range(9)}


def test_a_limit_is_that_of_the_setting_and_no_part_of_the_identity(pictures) -> None:
    config = DataConfig(source=str(pictures))
    sources = [open_data(replace(config, limit=limit)) for limit in (0, 10, 24, 1000)]
    assert [len(source) for source in sources] == [24, 10, 24, 24]
    assert len({str(identities(source)) for source in sources}) == 1
