"""Parquet files: bytes or paths in any kind of cell, columns that are checked, damage that is counted."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reca_fast.config import TaskWeights
from reca_fast.data.records import BadRecord
from reca_fast.errors import UserError
from tests.data.sources.records import NAMES, contents, opened, picture


@pytest.mark.parametrize("as_struct", [False, True])
def test_parquet_files_give_their_rows_in_order(tmp_path: Path, as_struct: bool) -> None:
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
