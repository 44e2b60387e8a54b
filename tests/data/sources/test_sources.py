"""Every kind of source gives the same records; what is no source is refused in one clear sentence."""

import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reca_fast.data.records import BadRecord
from reca_fast.data.sources.base import why_no_picture
from reca_fast.errors import UserError
from tests.data.sources.records import contents, opened, picture, write_tar


def test_a_folder_gives_its_pictures_in_the_order_of_their_names(tmp_path: Path) -> None:
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
