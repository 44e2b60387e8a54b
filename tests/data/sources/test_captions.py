"""Captions: beside the picture, in a column or in a table; several of them; and why one is lacking."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.sources.records import NAMES, contents, opened, picture, write_tar


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


SEVERAL = {"short": "a cup", "long": "a red cup"}
NAMED = {  # how a record can hold captions by name -> the one called "short"
    "names": (SEVERAL, "a cup"),
    "names under a field": ({"url": "x", "captions": SEVERAL}, "a cup"),
    "names as text": ({"caption": json.dumps(SEVERAL)}, "a cup"),
    "several of one name": ({"short": ["a", "b"]}, ("a", "b")),
    "a list": ({"captions": [{"long": "x"}, SEVERAL]}, "a cup"),
    "another name": ({"long": "a red cup"}, None),
    "no name": ({"caption": "a cup"}, None),
    "nothing": ({"short": None}, None),
    "deep": ({"captions": [[[[]]]]}, None),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("place", ["folder", "tar", "metadata", "parquet", "dataset"])
def test_a_caption_is_chosen_by_its_name(place: str, name: str, tmp_path: Path) -> None:
    value, expected = NAMED[name]
    text = json.dumps(value)
    if place == "folder":
        (tmp_path / "a.png").write_bytes(picture("a"))
        (tmp_path / "a.json").write_text(text)
    elif place == "tar":
        write_tar(tmp_path / "a.tar", {"a.png": picture("a"), "a.json": text.encode()})
    elif place == "metadata":
        (tmp_path / "a.png").write_bytes(picture("a"))
        (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "caption": value}))
    elif place == "parquet":
        pq.write_table(pa.Table.from_pylist([{"image": picture("a"), "caption": text}]), tmp_path / "a.parquet")
    else:
        rows = {"image": [{"bytes": picture("a"), "path": None}], "caption": [text]}
        datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    source = opened(tmp_path / "saved" if place == "dataset" else tmp_path, caption_name="short")
    record = source.read(0)
    assert record.caption == expected
    assert expected or record.lack == "no caption called 'short'"


def test_texts_beside_pictures_have_no_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture("a"))
    (tmp_path / "a.txt").write_text("a cup")
    assert opened(tmp_path, caption_name="short").read(0).lack == "no caption called 'short'"
