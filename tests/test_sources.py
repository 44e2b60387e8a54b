"""Every kind of source gives the same records; what is no source is refused in one clear sentence."""

import io
import json
import logging
import os
import tarfile
import threading
import time
import tracemalloc
from pathlib import Path

import datasets
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from reca_fast.config import DataConfig, TaskWeights
from reca_fast.data.images import BadRecord
from reca_fast.data.sources import Source, open_source
from reca_fast.errors import UserError

NAMES = ("b", "a", "c")


def picture(name: str) -> bytes:
    """A small PNG, another one for every name."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (sum(map(ord, name)) % 256, 0, 0)).save(out, "PNG")
    return out.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def opened(path: object, **settings) -> Source:
    return open_source(DataConfig(source=str(path), **settings))


def contents(source: Source) -> list[tuple[str, bytes, str | None]]:
    records = [source.read(i) for i in range(len(source))]
    assert [record.key for record in records] == [source.key(i) for i in range(len(source))]
    return [(record.key, record.image, record.caption) for record in records]


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b.jpg", "a.PNG", "deep/c.webp", ".hidden/d.png", "._e.png"):
        (tmp_path / name).write_bytes(picture(name))
    (tmp_path / "b.txt").write_text(" a red square \n")
    (tmp_path / "deep/c.json").write_text(json.dumps({"text": "a circle"}))
    (tmp_path / "notes.md").write_text("not a picture")
    assert contents(opened(tmp_path)) == [
        ("a.PNG", picture("a.PNG"), None),
        ("b.jpg", picture("b.jpg"), "a red square"),
        ("deep/c.webp", picture("deep/c.webp"), "a circle"),
    ]


def test_a_file_that_disappears_is_a_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture("a"))
    source = opened(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(BadRecord, match="unreadable file"):
        source.read(0)


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
    assert source.damaged == ["cut.tar"]


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
    assert len(source) == 1 and source.damaged == ["a.tar"] and peak < 2**22


def test_a_damaged_tar_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(os.urandom(2000))
    with pytest.raises(UserError, match=r"no pictures .* 1 of them damaged"):
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


@pytest.mark.parametrize("as_struct", [False, True])
def test_parquet(tmp_path: Path, as_struct: bool) -> None:
    for part in range(2):
        images: list = [picture(name) for name in NAMES] + [None]
        if as_struct:
            images = [{"bytes": image, "path": None} for image in images]
        table = pa.table({"picture": images, "text": ["x", "", None, "y"], "id": [1, 2, 3, 4]})
        pq.write_table(table, tmp_path / f"part-{part}.parquet", row_group_size=3)
    settings = {"image_column": "picture", "caption_column": "text"}
    for notation in ("", "*.parquet", "part-{0..1}.parquet"):
        source = opened(tmp_path / notation, **settings)
        assert len(source) == 8
        for index in (6, 0, 5, 1):  # in any order
            record = source.read(index)
            assert record.key == f"part-{index // 4}.parquet/{index % 4:09d}"
            assert record.image == picture(NAMES[index % 4])
            assert record.caption == ("x" if index % 4 == 0 else None)
        with pytest.raises(BadRecord, match="without picture bytes"):
            source.read(3)


def test_parquet_columns_are_checked(tmp_path: Path) -> None:
    pq.write_table(pa.table({"picture": [b"x"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no column 'pictures'; it has 'picture', 'id'.*Did you mean 'picture'"):
        opened(tmp_path, image_column="pictures")
    with pytest.raises(UserError, match="'id' holds int64, not pictures"):
        opened(tmp_path, image_column="id")
    with pytest.raises(UserError, match="no column 'caption'"):
        opened(tmp_path, image_column="picture", tasks=TaskWeights(t2i=1.0))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(UserError, match=r"b\.parquet is not a readable parquet file"):
        opened(tmp_path, image_column="picture")


def saved_dataset(folder: Path, column: dict[str, list], image_feature: object) -> datasets.Dataset:
    features = datasets.Features({"image": image_feature, "caption": datasets.Value("string")})
    return datasets.Dataset.from_dict(column, features=features)


@pytest.mark.parametrize("feature", [datasets.Image(), datasets.Value("binary")])
def test_folder_of_save_to_disk(tmp_path: Path, feature: object) -> None:
    cells = [picture(n) if isinstance(feature, datasets.Value) else {"bytes": picture(n), "path": None} for n in NAMES]
    rows = saved_dataset(tmp_path, {"image": cells, "caption": ["x", None, " "]}, feature)
    expected = [(f"train/{i:09d}", picture(name), "x" if i == 0 else None) for i, name in enumerate(NAMES)]
    rows.save_to_disk(tmp_path / "one")
    assert contents(opened(tmp_path / "one")) == expected
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "splits")
    assert contents(opened(tmp_path / "splits")) == expected
    with pytest.raises(UserError, match=r"no split 'tset'; it has 'train', 'test'.*Did you mean 'test'"):
        opened(tmp_path / "splits", split="tset")
    with pytest.raises(UserError, match="no column 'img'; it has 'image', 'caption'"):
        opened(tmp_path / "one", image_column="img")
    with pytest.raises(UserError, match="not pictures"):
        opened(tmp_path / "one", image_column="caption")


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub answers, as far as a connection goes."""
    monkeypatch.setattr("reca_fast.data.sources.hub._answers", lambda: True)


@pytest.mark.usefixtures("reachable")
def test_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [{"bytes": picture(name), "path": None} for name in NAMES]
    rows = saved_dataset(tmp_path, {"image": cells, "caption": ["x", "y", "z"]}, datasets.Image())

    def load_dataset(name: str, split: str) -> datasets.Dataset:
        if split != "train":
            raise ValueError(f"Unknown split {split!r}. Should be one of ['train'].")
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [caption for _, _, caption in contents(opened("owner/name"))] == ["x", "y", "z"]
    with pytest.raises(UserError, match="Unknown split 'test'"):
        opened("owner/name", split="test")


def test_a_lost_file_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    for name in ("pics/nope", "lost/nope.jpg", "lost/nope.tar", "lost/nope.parquet"):
        with pytest.raises(UserError, match=f"nothing is found at '{name}'"):
            opened(name)


def test_an_offline_hub_says_so_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers at an address that accepts no connection, and names may take for ever to look up."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # set by what is tested, undone afterwards
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    forever = threading.Event()
    monkeypatch.setattr("socket.create_connection", lambda *args, **options: forever.wait())
    for offline in ("", "1"):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        start = time.monotonic()
        with pytest.raises(UserError, match="'owner/name' is no path here, and the Hugging Face hub is offline"):
            opened("owner/name")
        assert time.monotonic() - start < 3
        assert huggingface_hub.constants.HF_HUB_OFFLINE
    (tmp_path / "hub" / "datasets--owner--name").mkdir(parents=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: pytest.skip("the cache was asked"))
    with pytest.raises(pytest.skip.Exception):
        opened("owner/name")
    forever.set()


@pytest.mark.usefixtures("reachable")
def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str) -> datasets.Dataset:
        for library in ("datasets.load", "huggingface_hub.utils._http"):
            assert not logging.getLogger(library).isEnabledFor(logging.ERROR)
        raise ConnectionError(f"Couldn't reach {name!r}\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"Couldn't reach 'owner/name' on the Hub; check the name\."):
        opened("owner/name")
    assert logging.getLogger("datasets.load").isEnabledFor(logging.ERROR)  # afterwards


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.source is empty"):
        opened("")
    with pytest.raises(UserError, match=r"nothing is found at .*missing"):
        opened(tmp_path / "missing")
    with pytest.raises(UserError, match="holds no pictures"):
        opened(tmp_path)
    with pytest.raises(UserError, match=r"shard-1\.tar"):
        write_tar(tmp_path / "shard-0.tar", {"a.png": picture("a")})
        opened(tmp_path / "shard-{0..1}.tar")
    with pytest.raises(UserError, match="runs backwards"):
        opened(tmp_path / "shard-{3..1}.tar")
    (tmp_path / "a.png").write_bytes(picture("a"))
    with pytest.raises(UserError, match="holds pictures and tar shards"):
        opened(tmp_path)


def test_keys_do_not_depend_on_where_the_data_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("here", "there/deeper"):
        (tmp_path / place).mkdir(parents=True)
        write_tar(tmp_path / place / "s.tar", {"a.png": picture("a")})
    monkeypatch.chdir(tmp_path)
    keys = {opened(name).key(0) for name in ("here", "./here", "there/deeper/*.tar", tmp_path / "here" / "s.tar")}
    assert keys == {"s.tar/a.png"}


def test_a_whole_tar_is_not_called_damaged(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.png": picture("a")})
    assert opened(tmp_path).damaged == []
