"""Hugging Face datasets: saved to disk or by their hub id, and a hub that cannot be reached."""

import io
import logging
import struct
import threading
import time
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest

from reca_fast.data.records import BadRecord
from reca_fast.errors import UserError
from tests.data.sources.records import NAMES, contents, opened, picture


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
def test_a_hub_id_opens_the_dataset_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr("socket.create_connection", lambda *args, **options: forever.wait() and io.BytesIO())
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
