"""A shard gives back what was put in, to the last bit, or says that it is damaged; an index knows what made it."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from reca_fast.data.cache.format import (
    Damaged,
    Entry,
    Index,
    Shard,
    begin_cache,
    read_index,
    refuse_other,
    shard_path,
    write_shard,
)
from reca_fast.data.cache.source import CacheSource, verify_cache
from reca_fast.data.records import BadImage, BadRecord
from reca_fast.errors import UserError
from reca_fast.sample import Encoded

INDEX = Index(
    records=4,
    records_per_shard=3,
    encoders={"VAE": "1"},
    source={"names": "2", "pictures": "3"},
    settings={"model.precision": "bf16", "data.blur_sigma": 0.0},
    holds=["condition", "target"],
)
WIDE = torch.tensor([[1 / 3, -2.0, 0.0]])
"""Its first number takes more than bf16 can hold."""
CODES = torch.arange(5)
TENSORS = {
    "condition": {"features": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()},
    "target": {
        **{"wide": WIDE, "narrow": WIDE.bfloat16().float(), "none": torch.zeros(0, 2)},
        **{"codes": CODES, "short": CODES.to(torch.int16)},
    },
}


def record(key: str = "a.png", **more: Any) -> tuple[Entry, dict[str, Encoded]]:
    entry = Entry(key, (50, 40), sizes={"condition": (28, 14), "target": (16, 8)}, **more)
    return entry, {name: Encoded(*entry.sizes[name], tensors) for name, tensors in TENSORS.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache of four records: one as it should be, one whose name is no UTF-8, two bad ones."""
    unreadable, cut = Entry("x.png", bad="not a readable picture"), Entry("y.png", (50, 40), bad="cut off")
    begin_cache(tmp_path, INDEX)
    write_shard(
        shard_path(tmp_path, 0), [record(captions=["a cup", "a red cup"]), record("\udcff.png"), (unreadable, {})]
    )
    write_shard(shard_path(tmp_path, 1), [(cut, {})])
    return tmp_path


def test_tensors_come_back_bit_for_bit_in_their_dtypes(folder) -> None:
    source = CacheSource(folder)
    for index, key in enumerate(("a.png", "\udcff.png")):
        found = source.read(index)
        assert (found.key, source.key(index), found.image, found.cached.size) == (key, key, b"", (50, 40))
        condition, target = found.cached.read((28, 14), (16, 8))
        assert (condition.width, condition.height, target.width, target.height) == (28, 14, 16, 8)
        for encoded, tensors in ((condition, TENSORS["condition"]), (target, TENSORS["target"])):
            assert encoded.tensors.keys() == tensors.keys()
            for name, tensor in tensors.items():
                assert encoded.tensors[name].dtype == tensor.dtype and torch.equal(encoded.tensors[name], tensor), name
    assert source.read(0).caption == ("a cup", "a red cup") and source.read(1).caption is None
    assert source.read(0).cached.read(None, (16, 8))[0] is None


def test_what_bf16_holds_takes_half_the_room(folder) -> None:
    from safetensors.torch import load_file

    stored = load_file(shard_path(folder, 0))
    assert stored["0.target.narrow"].dtype == torch.bfloat16 and stored["0.target.wide"].dtype == torch.float32


def test_bad_pictures_are_bad_at_the_moment_when_they_would_have_been(folder) -> None:
    """A header that cannot be read is known while packs are planned; what cannot be decoded, only when it is built."""
    source = CacheSource(folder)
    with pytest.raises(BadRecord, match="not a readable picture"):
        source.read(2)
    found = source.read(3)
    assert found.cached.size == (50, 40)
    with pytest.raises(BadImage, match="cut off"):
        found.cached.read((28, 14), None)


def test_another_size_is_refused(folder) -> None:
    with pytest.raises(UserError, match=r"holds no target of 32 x 8 of a\.png.* make the cache anew"):
        CacheSource(folder).read(0).cached.read((28, 14), (32, 8))


def test_a_whole_cache_is_verified_and_a_changed_byte_is_found(folder) -> None:
    assert "a whole cache of 2 pictures" in verify_cache(folder)
    path = shard_path(folder, 0)
    data = path.read_bytes()
    for place in range(9, len(data), 97):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(UserError, match=re.escape(f"{path} is damaged (")):
            verify_cache(folder)
    path.write_bytes(data[:-1])
    with pytest.raises(Damaged, match=r"remove it and give the same `reca-fast cache` command again\.$"):
        Shard(path, 3)


def test_missing_shards_and_folders_that_are_no_caches_are_named(folder, tmp_path) -> None:
    shutil.move(shard_path(folder, 0), tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"1 of 2 shards are missing, first shard-00000\.safetensors; give the same"):
        CacheSource(folder)
    with pytest.raises(UserError, match=r"is no cache: it holds no cache\.json"):
        read_index(folder / "none")
    (folder / "cache.json").write_text('{"records": 0}')
    with pytest.raises(UserError, match=r"cache\.json lacks"):
        read_index(folder)
    for earlier in (1, 2):
        (folder / "cache.json").write_text(json.dumps({"records": 4, "model": {}, "format": earlier}))
        with pytest.raises(
            UserError, match=r"by an earlier version of reca-fast.* make it again with `reca-fast cache`"
        ):
            CacheSource(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"settings": {**INDEX.settings, "data.blur_sigma": 2.0}}, r"made with data\.blur_sigma=0\.0, now it is 2\.0"),
        ({"encoders": {"VAE": "4"}}, r"made from another model\.path: it differs in VAE"),
        ({"source": {"names": "2", "pictures": "4"}}, r"made from another data\.source: it differs in pictures"),
    ],
)
def test_what_was_made_of_something_else_is_refused_by_name(change, says, folder) -> None:
    with pytest.raises(UserError, match=says + r".*; set it back, or name another --out\.$"):
        begin_cache(folder, replace(INDEX, **change))
    begin_cache(folder, INDEX)  # the same again goes on


def test_a_shard_size_is_kept_and_pictures_that_are_not_stored_are_named(folder) -> None:
    with pytest.raises(UserError, match="has 3 records in a shard; set --records_per_shard to that"):
        begin_cache(folder, replace(INDEX, records_per_shard=5))
    with pytest.raises(UserError, match=r"holds no conditions, which data\.tasks ask for"):
        refuse_other(replace(INDEX, holds=["target"]), INDEX, folder, "make another cache")
