"""Every kind of source gives the same records; what is no source is refused in one clear sentence."""

import io
import json
import logging
import os
import re
import struct
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
from reca_fast.data.sources.base import why_no_picture
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


def contents(source: Source) -> list[tuple[str, bytes, str | tuple[str, ...] | None]]:
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
    source = opened(tmp_path)
    assert source.ignored.counts == {"hidden": 2, ".md": 1}
    assert contents(source) == [
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


def test_a_row_group_that_unfolds_without_end_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One value in a dictionary, named by every row: a kilobyte of file would take 2 GB."""
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array([bytes(2**20)], pa.binary()))
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet", store_schema=False, compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    monkeypatch.setattr("reca_fast.data.sources.parquet.MAX_GROUP", 2**25)
    monkeypatch.setattr("reca_fast.data.sources.parquet.AT_ONCE", 2**23)
    source, before = opened(tmp_path), pa.total_allocated_bytes()
    with pytest.raises(BadRecord, match="parquet row group too large"):
        source.read(0)
    assert pa.total_allocated_bytes() - before < 2**27


def test_parquet_columns_are_checked(tmp_path: Path) -> None:
    pq.write_table(pa.table({"picture": [b"x"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no column 'pictures'; it has 'picture', 'id'.*Did you mean 'picture'"):
        opened(tmp_path, image_column="pictures")
    with pytest.raises(UserError, match="'id' holds int64, not pictures"):
        opened(tmp_path, image_column="id")
    with pytest.raises(UserError, match="no column 'caption'"):
        opened(tmp_path, image_column="picture", tasks=TaskWeights(t2i=1.0))
    pq.write_table(pa.table({"other": [b"x"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet has no column 'picture', unlike .*a\.parquet; it has 'other'"):
        opened(tmp_path, image_column="picture")
    (tmp_path / "b.parquet").unlink()
    pq.write_table(pa.Table.from_arrays([pa.array([b"x"])] * 2, names=["image", "image"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="several columns 'image'"):
        opened(tmp_path)


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


ROW = struct.Struct("<4i")  # where the captions of three rows begin and end, as Arrow stores it


@pytest.mark.parametrize(
    ("whole", "damaged"),
    [(b"SECOND", b"\xffECOND"), (ROW.pack(0, 3, 9, 14), ROW.pack(0, 3, 2**30, 14))],
    ids=["no UTF-8 any more", "a caption that ends behind the file"],
)
def test_a_damaged_row_of_a_dataset_is_a_bad_record(tmp_path: Path, whole: bytes, damaged: bytes) -> None:
    """Arrow takes a file as it is: to follow such places would end the process."""
    cells = {"image": [picture(name) for name in NAMES], "caption": ["one", "SECOND", "three"]}
    saved_dataset(tmp_path, cells, datasets.Value("binary")).save_to_disk(tmp_path / "rows")
    (file,) = (tmp_path / "rows").glob("*.arrow")
    assert file.read_bytes().count(whole) == 1
    file.write_bytes(file.read_bytes().replace(whole, damaged))
    source = opened(tmp_path / "rows")
    assert source.read(0).caption == "one"
    with pytest.raises(BadRecord, match="unreadable row"):
        source.read(1)


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
    with pytest.raises(UserError, match="nothing is found at"):
        opened("a\0b")
    with pytest.raises(UserError, match=r"nothing is found at .*missing"):
        opened(tmp_path / "missing")
    with pytest.raises(UserError, match="holds no pictures"):
        opened(tmp_path)
    with pytest.raises(UserError, match=r"shard-1\.tar"):
        write_tar(tmp_path / "shard-0.tar", {"a.png": picture("a")})
        opened(tmp_path / "shard-{0..1}.tar")
    with pytest.raises(UserError, match="names more than 1,000,000 files"):
        opened(tmp_path / "{0..99999999999}.png")
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
    assert opened(tmp_path).ignored.counts == {}


# --- used, skipped with a reason, or ignored with a reason


def test_links_are_followed_once_and_what_is_no_picture_is_counted(tmp_path: Path) -> None:
    for name in (
        "pool/cats/c.jpg",
        "data/real/r.jpg",
        "data/b.gif",
        "data/d.jfif",
        "data/e.heic",
        "data/__MACOSX/f.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(name))
    data = tmp_path / "data"
    for link, target in {
        "a": "../pool",
        "z": "real",
        "up": "..",
        "gone.jpg": "nowhere",
        "self": "self",
        "l.png": "b.gif",
    }.items():
        (data / link).symlink_to(target)
    os.mkfifo(data / "pipe.jpg")
    (data / "Thumbs.db").write_bytes(b"")
    (data / "r.txt").write_text("the picture lies elsewhere")
    source = opened(data)
    # "a" comes before "up", which then finds its folders read; "z" is read under its own name.
    assert [key for key, _, _ in contents(source)] == ["a/cats/c.jpg", "b.gif", "d.jfif", "l.png", "real/r.jpg"]
    assert source.ignored.counts == {
        "hidden": 2,
        "dangling link": 1,
        "unreadable link": 1,
        "neither file nor folder": 1,
        "link to a folder already read": 3,
        why_no_picture(".heic"): 1,
        ".txt without a picture of its name": 1,
    }


def test_an_unreadable_folder_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(picture("x"))
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    source = opened(tmp_path)
    assert [source.key(i) for i in range(len(source))] == ["a/x.png"]
    assert str(source.ignored) == "1 x unreadable folder (e.g. b)"


def test_file_names_that_are_no_utf8_are_used(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / f"{name}.jpg").write_bytes(picture("x"))
    (tmp_path / f"{name}.txt").write_text("a cup")
    (tmp_path / f"{name}.doc").write_bytes(b"")
    source = opened(tmp_path)
    assert contents(source) == [(f"{name}.jpg", picture("x"), "a cup")]
    assert str(source.ignored) == "1 x .doc (e.g. caf\\udce9.doc)"


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


def test_damaged_parquet_files_among_good_ones_are_counted(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [picture("a")]}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for name, data in {"b": whole[: len(whole) // 2], "c": b"", "d": b"PAR1 broken PAR1"}.items():
        (tmp_path / f"{name}.parquet").write_bytes(data)
    source = opened(tmp_path)
    assert contents(source) == [("a.parquet/000000000", picture("a"), None)]
    assert str(source.ignored) == "3 x damaged parquet file (e.g. b.parquet, c.parquet, d.parquet)"
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(UserError, match=r"no rows in the parquet files.*; ignored: 3 x damaged parquet file"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_binary(),
        pa.binary_view(),
        pa.binary(len(picture("a"))),
        pa.dictionary(pa.int32(), pa.binary()),
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.list_(pa.binary()),
        pa.string(),
    ],
    ids=str,
)
def test_every_kind_of_parquet_cell(tmp_path: Path, kind: pa.DataType) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture("a"))
    cell: object = "pictures/a.png" if pa.types.is_string(kind) else picture("a")
    if "struct" in str(kind):
        cell = {"bytes": None, "path": "pictures/a.png"}
    if pa.types.is_list(kind):
        cell = [cell]
    column = pa.array([picture("a")]).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array([cell], kind)
    try:
        pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    except pa.ArrowNotImplementedError:
        pytest.skip(f"this pyarrow writes no {kind}")
    assert contents(opened(tmp_path / "a.parquet")) == [("a.parquet/000000000", picture("a"), None)]


def test_parquet_rows_without_exactly_one_picture_are_bad_records(tmp_path: Path) -> None:
    rows = pa.array([[picture("a"), picture("b")], [], None, [picture("c")]], pa.list_(pa.binary()))
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    source = opened(tmp_path)
    for index, reason in enumerate(("several pictures", "without picture bytes", "without picture bytes")):
        with pytest.raises(BadRecord, match=reason):
            source.read(index)
    assert source.read(3).image == picture("c")
    lost = pa.array([{"bytes": None, "path": "lost.png"}, {"bytes": None, "path": "/dev/zero"}])
    pq.write_table(pa.table({"image": lost}), tmp_path / "a.parquet")
    for index in range(2):
        with pytest.raises(BadRecord, match="unreadable file"):
            opened(tmp_path).read(index)


def test_a_lost_file_or_a_damaged_page_does_not_refuse_a_column_of_paths(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(picture("there"))
    pq.write_table(pa.table({"image": ["lost.png", "there.png"]}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[:4] + bytes(byte ^ 0x5A for byte in whole[4:40]) + whole[40:])
    source = opened(tmp_path / "*.parquet")
    assert source.read(1).image == picture("there")
    with pytest.raises(BadRecord, match="unreadable file"):
        source.read(0)
    assert len(source) == 2 and source.ignored.counts == {"damaged parquet file": 1}


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [("https://example.org/a.jpg", "addresses such as https://example.org/a.jpg.*img2dataset"), ("aGVsbG8=", "base64")],
)
def test_text_instead_of_pictures_is_refused(tmp_path: Path, cell: str, sentence: str) -> None:
    pq.write_table(pa.table({"image": [None, cell]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=sentence):
        opened(tmp_path)


# --- layouts of other tools


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_imagefolder_with_a_table_of_captions(tmp_path: Path, kind: str) -> None:
    (tmp_path / "train").mkdir()
    for name in NAMES:
        (tmp_path / "train" / f"{name}.png").write_bytes(picture(name))
    (tmp_path / "train" / "c.txt").write_text("beside it")
    rows = [{"file_name": f"{name}.png", "text": f"caption of {name}"} for name in "abx"]
    table = tmp_path / "train" / f"metadata.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), table)
    elif kind == "csv":
        table.write_text("file_name,text\n" + "".join(f"{row['file_name']},{row['text']}\n" for row in rows))
    else:
        a, b, x = (json.dumps(row).encode() for row in rows)
        table.write_bytes(b"\n".join([a, b"[1]", b"no JSON", b, b"\xff", x]))
    source = opened(tmp_path)
    assert contents(source) == [
        ("train/a.png", picture("a"), "caption of a"),
        ("train/b.png", picture("b"), "caption of b"),
        ("train/c.png", picture("c"), "beside it"),
    ]
    expected = {"row of metadata whose picture is missing": 1}
    if kind == "jsonl":
        expected |= {"row of metadata without a file_name": 1, "damaged row of metadata": 2}
    assert source.ignored.counts == expected


def test_folders_of_img2dataset(tmp_path: Path) -> None:
    for part in ("tars", "files"):
        (tmp_path / part / "00000").mkdir(parents=True)
        (tmp_path / part / "00000_stats.json").write_text("{}")
        pq.write_table(pa.table({"key": ["0"], "caption": ["a cup"]}), tmp_path / part / "00000.parquet")
    write_tar(
        tmp_path / "tars" / "00000.tar", {"0.png": picture("0"), "0.json": b'{"caption": null}', "0.txt": b"a cup"}
    )
    (tmp_path / "files" / "00000" / "0.png").write_bytes(picture("0"))
    (tmp_path / "files" / "00000" / "0.txt").write_text("a cup")
    for part, key in (("tars", "00000.tar/0.png"), ("files", "00000/0.png")):
        source = opened(tmp_path / part)
        assert contents(source) == [(key, picture("0"), "a cup")]
        assert source.ignored.counts["table beside its pictures"] == 1


def test_the_glob_of_each_kind_is_shown_and_works(tmp_path: Path) -> None:
    folder = tmp_path / "odd [v1]"
    folder.mkdir()
    write_tar(folder / "t.tar", {"a.png": picture("a")})
    (folder / "b.png").write_bytes(picture("b"))
    with pytest.raises(UserError, match="holds pictures and tar shards") as refused:
        opened(folder)
    globs = re.findall(r"'([^']*\*\*[^']*)'", str(refused.value))
    assert [contents(opened(pattern))[0][1] for pattern in globs] == [picture("b"), picture("a")]
    assert len(opened(tmp_path / "odd*" / "*.png")) == 1
    (folder / "t.tar").unlink()
    assert len(opened(tmp_path / "odd?[[]*")) == 1  # a pattern may name folders


def test_a_path_that_may_not_be_read_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat, shard = os.stat, str(tmp_path / "a.tar")

    def refusing(path: object, **options: object) -> object:
        if path == shard:
            raise PermissionError(13, "Permission denied")
        return stat(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", refusing)
        with pytest.raises(UserError, match=r"a\.tar' may not be read; change its permissions"):
            opened(shard)


# --- captions


LACKS = {
    "unknown encoding": ("txt", "a café".encode("latin-1")),
    "NUL": ("txt", "a cup".encode("utf-16-le")),
    "empty": ("txt", b" \n"),
    "more than 1 MB": ("txt", b"a cup, " * 200_000),
    "damaged caption file": ("json", b"[" * 100_000),
    "no valid Unicode": ("json", b'{"caption": "\\ud800"}'),
    "no caption": ("json", b'{"caption": null, "url": "x"}'),
}


@pytest.mark.parametrize("place", ["folder", "tar"])
def test_captions_are_read_in_every_spelling_or_say_what_they_lack(tmp_path: Path, place: str) -> None:
    both = json.dumps({"short": "a cup", "long": "a red cup"})
    spellings = {
        "a cup": [
            ("txt", b"a cup\n"),
            ("TXT", b"\xef\xbb\xbfa cup"),
            ("caption", "a cup".encode("utf-16")),
            ("json", b"\xef\xbb\xbf" + json.dumps({"caption": None, "text": "a cup"}).encode()),
            ("json", json.dumps({"prompt": "a cup"}).encode("utf-32")),
            ("json", b'["a cup"]'),
        ],
        ("a cup", "a red cup"): [
            ("json", json.dumps({"caption": ["a cup", "a red cup"]}).encode()),
            ("json", json.dumps({"captions": {"short": "a cup", "empty": " ", "long": "a red cup"}}).encode()),
            ("json", json.dumps({"captions": both}).encode()),
            ("txt", both.encode()),
        ],
        "{a} cup": [("txt", b"{a} cup")],
        "[1, 2]": [("txt", b"[1, 2]")],
    }
    cases = [(wanted, *spelling) for wanted, group in spellings.items() for spelling in group]
    cases += [(lack, *spelling) for lack, spelling in LACKS.items()]
    files: dict[str, bytes] = {}
    for number, (_, ending, data) in enumerate(cases):
        files |= {f"{number:02d}.png": picture("x"), f"{number:02d}.{ending}": data}
    if place == "tar":
        write_tar(tmp_path / "a.tar", files)
    else:
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
    source = opened(tmp_path)
    assert len(source) == len(cases) and not source.ignored
    for index, (wanted, _, _) in enumerate(cases):
        record = source.read(index)
        if wanted in LACKS:
            assert record.caption is None and wanted in record.lack
        else:
            assert record.caption == wanted


def test_a_dataset_with_lists_of_captions(tmp_path: Path) -> None:
    cells = [{"bytes": picture(name), "path": None} for name in "ab"]
    features = datasets.Features({"image": datasets.Image(), "caption": [datasets.Value("string")]})
    rows = datasets.Dataset.from_dict({"image": cells, "caption": [["a cup", "a red cup"], []]}, features=features)
    rows.save_to_disk(tmp_path / "rows")
    assert [caption for _, _, caption in contents(opened(tmp_path / "rows"))] == [("a cup", "a red cup"), None]


def test_captions_in_columns(tmp_path: Path) -> None:
    both = json.dumps({"short": "a cup", "long": "a red cup"})
    columns: dict[str, tuple] = {
        "BAGEL's own": ([both, "a cup", "", None], pa.string()),
        "large": ([both, "a cup", "", None], pa.large_string()),
        "lists": ([["a cup", "a red cup"], ["a cup"], [], None], pa.list_(pa.string())),
        "structs": (
            [{"a": "a cup", "b": "a red cup"}, {"a": "a cup"}, {"a": ""}, None],
            pa.struct([("a", pa.string()), ("b", pa.string())]),
        ),
    }
    for name, (cells, kind) in columns.items():
        pq.write_table(
            pa.table({"image": [picture("a")] * 4, "captions": pa.array(cells, kind)}), tmp_path / "a.parquet"
        )
        found = [caption for _, _, caption in contents(opened(tmp_path, caption_column="captions"))]
        assert found == [("a cup", "a red cup"), "a cup", None, None], name
