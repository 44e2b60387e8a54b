"""Tar shards: read in place, in every notation; damaged ones give what is whole in them and take no memory."""

import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from reca_fast.errors import UserError
from tests.data.sources.records import NAMES, contents, opened, picture, write_tar


def test_tar_shards_in_every_notation(tmp_path: Path) -> None:
    for shard in range(2):
        members = {f"{name}.png": picture(name) for name in NAMES}
        members |= {"a.txt": b"first", "c.json": b'{"caption": "third"}', "b.cls": b"5"}
        members |= {"._a.png": b"macOS", ".cache/x.png": b"hidden", "b.json": b"[not an object"}
        write_tar(tmp_path / f"shard-{shard:03d}.tar", members)
    expected = [
        (f"shard-00{shard}.tar/{name}.png", picture(name), {"a": "first", "c": "third"}.get(name))
        for shard in range(2)
        for name in sorted(NAMES)
    ]
    for notation in ("", "*.tar", "shard-{000..001}.tar", "{shard-000,shard-001}.tar"):
        assert contents(opened(tmp_path / notation)) == expected, notation
    assert contents(opened(tmp_path / "shard-001.tar")) == expected[3:]


def test_tar_with_long_and_nested_names(tmp_path: Path) -> None:
    name = "folder/" + "x" * 200 + ".jpeg"
    write_tar(tmp_path / "a.tar", {f"./{name}": picture("x")})
    assert contents(opened(tmp_path)) == [(f"a.tar/{name}", picture("x"), None)]


@pytest.mark.parametrize("length", [2048, 2048 + 200, 2048 + 512 + 200], ids=["before a header", "in it", "in data"])
def test_a_truncated_tar_keeps_its_complete_members(tmp_path: Path, length: int) -> None:
    # A member takes a header of 512 bytes and 512 bytes of data here, so that the third starts at byte 2048.
    members = {f"{name}.png": picture(name).ljust(512, b"\0") for name in "abc"}
    write_tar(tmp_path / "good.tar", members)
    (tmp_path / "cut.tar").write_bytes((tmp_path / "good.tar").read_bytes()[:length])
    source = opened(tmp_path)
    assert [source.key(i) for i in range(len(source))] == [
        "cut.tar/a.png",
        "cut.tar/b.png",
        "good.tar/a.png",
        "good.tar/b.png",
        "good.tar/c.png",
    ]
    assert str(source.ignored) == "1 x damaged shard, read as far as it goes (e.g. cut.tar)"


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_header_of_absurd_size_takes_no_memory(tmp_path: Path, kind: bytes) -> None:
    shard = tmp_path / "a.tar"
    write_tar(shard, {"0.png": picture("0")})
    header = tarfile.TarInfo("pax")
    header.type, header.size = kind, 1 << 40
    members = shard.read_bytes().rstrip(b"\0")
    members += bytes(-len(members) % 512)
    shard.write_bytes(members + header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    tracemalloc.start()
    source = opened(shard)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(source) == 1 and "damaged shard" in str(source.ignored) and peak < 2**22


def test_a_damaged_tar_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(os.urandom(2000))
    with pytest.raises(UserError, match=r"no pictures .* 1 x damaged shard"):
        opened(tmp_path)


def test_nothing_in_a_tar_is_extracted(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_tar(tmp_path / "data" / "a.tar", {"../escaped.png": picture("x"), "a.png": picture("a")})
    source = opened(tmp_path / "data")
    assert contents(source) == [("a.tar/a.png", picture("a"), None)]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "data"]


@pytest.mark.parametrize("hidden_by_name", [False, True])
def test_compressed_tars_are_refused(tmp_path: Path, hidden_by_name: bool) -> None:
    path = tmp_path / ("a.tar" if hidden_by_name else "a.tar.gz")
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(UserError, match=r"decompress it to \.tar"):
        opened(path)


def test_a_whole_tar_is_not_called_damaged(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.png": picture("a")})
    assert opened(tmp_path).ignored.counts == {}


def test_members_of_a_tar_that_are_no_records_are_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("a.png", "a.png", "/b.png", "../c.png", ".d.png", "e.cls", "f.txt", "a.TXT", "a.json"):
            data = {"a.TXT": b"", "a.json": b'{"caption": "a cup"}'}.get(name, picture(name))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, kind in (("l.png", tarfile.SYMTYPE), ("folder", tarfile.DIRTYPE), ("pipe", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.png"
            archive.addfile(info)
    source = opened(tmp_path)
    assert contents(source) == [
        ("a.tar/a.png", picture("a.png"), "a cup"),  # the empty caption file beside it does not hide the other one
        ("a.tar/b.png", picture("/b.png"), None),
    ]
    assert source.ignored.counts == {
        "member replaced by a later one of its name": 1,
        "member outside of its shard": 1,
        "hidden": 1,
        "link in a shard": 1,
        "neither file nor folder": 1,
        ".cls": 1,
        ".txt without a picture of its name": 1,
    }
