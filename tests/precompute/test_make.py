"""A cache is made by any number of processes, goes on after a kill, and skips what training would skip."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import reca_fast.models
from reca_fast.config import DataConfig, ModelConfig, ResizeConfig, TaskWeights
from reca_fast.data.cache.format import shard_path
from reca_fast.data.cache.source import CacheSource, verify_cache
from reca_fast.errors import UserError
from reca_fast.precompute import make_cache
from tests.models.toy import write_toy_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory, pictures) -> Iterator[Callable[..., None]]:
    """made(folder, rank=0, ...): `make_cache` of 24 pictures with the toy model, eight shards of three."""
    base = write_toy_checkpoint(tmp_path_factory.mktemp("toy") / "base")

    def start(folder: Path, tasks: TaskWeights | None = None, source: Path = pictures, **more: int) -> None:
        data = DataConfig(
            source=str(source),
            tasks=tasks or TaskWeights(),
            condition_resize=ResizeConfig(56, 56, 14),
            target_resize=ResizeConfig(32, 32, 8),
        )
        options = {"device": CPU, "records_per_shard": 3, **more}
        make_cache(folder, ModelConfig(path=str(base), precision="fp32"), data, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(reca_fast.models.MODELS, "toy", "tests.models.toy:ToyModel")
        yield start


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "cache"
    made(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_processes_share_the_shards_without_meeting(made, whole, tmp_path, capsys) -> None:
    for rank in (1, 0, 2):
        made(tmp_path, rank=rank, world=3)
        said = capsys.readouterr().out
        assert ("Train with --data.cache" in said) == (rank == 2) and (" images/s in each of 3" in said) == (rank == 0)
    assert contents(tmp_path) == contents(whole)
    assert "a whole cache of 24 pictures" in verify_cache(tmp_path)


def test_what_is_whole_is_kept_and_the_rest_is_made(made, whole, tmp_path, capsys, monkeypatch) -> None:
    """Whatever ends a process: here in the middle of the third shard, whose beginning stays under a hidden name."""

    class Killed(BaseException):
        pass

    def rename(path: Path, to: Path) -> Path:
        if to.name == "shard-00002.safetensors":
            raise Killed
        return plain(path, to)

    plain = Path.rename
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "rename", rename)
        made(tmp_path)
    kept = [shard_path(tmp_path, shard).stat().st_mtime_ns for shard in (0, 1)]
    assert not shard_path(tmp_path, 2).exists() and list(tmp_path.glob(".shard-00002*"))
    with pytest.raises(UserError, match="6 of 8 shards are missing"):
        CacheSource(tmp_path)
    capsys.readouterr()
    made(tmp_path)
    said = capsys.readouterr().out
    assert "2 of 8 shards are there and kept" in said and "18 of 18 pictures" in said and "ETA 0:00:00" in said
    assert kept == [shard_path(tmp_path, shard).stat().st_mtime_ns for shard in (0, 1)]
    assert contents(tmp_path) == contents(whole)


def test_bad_pictures_are_skipped_and_counted(made, pictures, tmp_path, capsys) -> None:
    source = tmp_path / "pictures"
    source.mkdir()
    for path in sorted(pictures.glob("0[0-4].png")):
        (source / path.name).write_bytes(path.read_bytes())
    (source / "01.png").write_bytes((source / "01.png").read_bytes()[:-200])
    (source / "03.png").write_bytes(b"none")
    made(tmp_path / "cache", source=source)
    said = capsys.readouterr().out
    assert "1 x not a readable picture (e.g. 03.png); 1 x truncated or damaged picture (e.g. 01.png)" in said
    assert "a whole cache of 3 pictures" in verify_cache(tmp_path / "cache")


def test_only_what_the_tasks_need_is_stored(made, tmp_path) -> None:
    made(tmp_path, TaskWeights(reca=0, t2i=1))
    found = CacheSource(tmp_path).read(0).cached
    assert found.read(None, (32, 32))[1].tensors["codes"].shape == (16,)
    with pytest.raises(UserError, match="holds no condition of 56 x 56"):
        found.read((56, 56), None)


def test_a_full_disk_is_one_sentence(made, tmp_path, monkeypatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reca_fast.data.cache.format.os.fsync", full)
    with pytest.raises(UserError, match=r"shard-00000\.safetensors cannot be written: No space left on device"):
        made(tmp_path)
