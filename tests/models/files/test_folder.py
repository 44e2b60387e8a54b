"""Small files of a checkpoint folder: read as JSON objects, and copied without following links out of it."""

import os
from pathlib import Path

import pytest

from reca_fast.errors import UserError
from reca_fast.models.files.folder import check_links, copy_files, files_inside, read_object, write_object


def test_objects_are_read_as_they_were_written(tmp_path) -> None:
    write_object(tmp_path / "config.json", {"sizes": [1, 2], "name": "größe"})
    assert read_object(tmp_path / "config.json") == {"sizes": [1, 2], "name": "größe"}
    assert "größe" in (tmp_path / "config.json").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json holds no JSON object"):
        read_object(tmp_path / "config.json")


def test_files_that_are_there_are_copied(tmp_path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "a.json").write_text("a")
    (base / "b.json").symlink_to("a.json")
    found = files_inside(base, ["a.json", "b.json", "c.json"])
    assert [path.name for path in found] == ["a.json", "b.json"]
    copy_files(found, tmp_path / "new" / "copy")
    copies = sorted((tmp_path / "new" / "copy").iterdir())
    assert [path.read_text() for path in copies] == ["a", "a"] and not any(path.is_symlink() for path in copies)


def test_links_into_the_hub_s_cache_are_followed_others_are_not(tmp_path) -> None:
    base = tmp_path / "hub" / "snapshots" / "abc"
    base.mkdir(parents=True)
    (tmp_path / "hub" / "blobs").mkdir()
    (tmp_path / "hub" / "blobs" / "0123").write_text("of the cache")
    (base / "a.json").symlink_to(Path("../../blobs/0123"))
    assert files_inside(base, ["a.json"]) == [base / "a.json"]
    (tmp_path / "secret").write_text("of this machine")
    (base / "b.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"b\.json is a link out of its folder, to .*secret; put a copy in its place"):
        files_inside(base, ["b.json"])


def test_a_link_to_nowhere_is_no_absent_file(tmp_path) -> None:
    check_links(tmp_path, ["a.json"])  # nothing there
    os.symlink("gone", tmp_path / "a.json")
    for look in (check_links, files_inside):
        with pytest.raises(UserError, match=r"a\.json is a link to gone, which is not there"):
            look(tmp_path, ["a.json"])
