"""Files of torch.save are read without running anything that they hold."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from reca_fast.errors import UserError
from reca_fast.models.files import check_finite, open_weights, stored_shapes

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(WEIGHTS, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_shapes_dtypes_and_tensors(path) -> None:
    with open_weights(path) as weights:
        assert weights.shapes == {"a.weight": (2, 3), "b": (4,)}
        assert weights.dtype("b") is torch.bfloat16
        whole, part = weights.tensor("a.weight"), weights.tensor("a.weight", (slice(1, 2), slice(0, 2)))
    assert torch.equal(whole, WEIGHTS["a.weight"]) and part.tolist() == [[3.0, 4.0]]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_tensors_are_mapped_not_read(path) -> None:
    with open_weights(path) as weights:
        weights.tensor("b")
        assert str(path) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin"])
def test_weights_beside_other_things(wrapper, suffix, tmp_path) -> None:
    path = tmp_path / f"saved{suffix}"
    torch.save({wrapper: WEIGHTS, "epoch": 3}, path)
    assert stored_shapes(path) == {"a.weight": (2, 3), "b": (4,)}


class Attack:
    """Unpickled, it would make a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_code_is_refused_and_not_run(tmp_path) -> None:
    path, mark = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save(WEIGHTS | {"attack": Attack(mark)}, path)
    with pytest.raises(UserError, match=r"evil\.pth holds more than tensors: .* run posix\.mkdir, .* \.safetensors"):
        open_weights(path)
    path.write_bytes(pickle.dumps(Attack(mark)))
    with pytest.raises(UserError, match=r"is not a whole file of torch\.save"):
        open_weights(path)
    assert not mark.exists()


@pytest.mark.parametrize("length", [0, 10, -1, -100])
def test_a_truncated_file_is_named(length, path) -> None:
    os.truncate(path, length if length >= 0 else path.stat().st_size + length)
    with pytest.raises(UserError, match=r"weights\.pth is not a whole file of torch\.save"):
        open_weights(path)


def test_a_damaged_pickle_is_named(path, tmp_path) -> None:
    with zipfile.ZipFile(path) as good, zipfile.ZipFile(tmp_path / "bad.pth", "w") as bad:
        for name in good.namelist():
            content = good.read(name)
            bad.writestr(name, b"\xff" + content if name.endswith("data.pkl") else content)
    with pytest.raises(UserError, match=r"bad\.pth is not a whole file of torch\.save"):
        open_weights(tmp_path / "bad.pth")


def test_a_zip_that_torch_did_not_write(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.pt", "w") as archive:
        archive.writestr("photo.png", b"")
    with pytest.raises(UserError, match=r"photos\.pt is not a whole file of torch\.save"):
        open_weights(tmp_path / "photos.pt")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (torch.ones(3), "holds no dictionary of weights, but Tensor"),
        ({}, "holds no dictionary of weights, but dict"),
        (WEIGHTS | {"steps": 3}, "holds 'steps' beside its weights"),
        (WEIGHTS | {7: torch.ones(1)}, "holds '7' beside its weights"),
        ({"a": torch.ones(2, dtype=torch.int8)}, "holds a as int8; weights must be F64, F32, F16 or BF16"),
        ({"a": torch.eye(3).to_sparse()}, "holds a as float32; weights must be"),
    ],
)
def test_what_is_no_weights(saved, message, tmp_path) -> None:
    torch.save(saved, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=message):
        open_weights(tmp_path / "weights.pth")


def test_numbers_that_are_none(tmp_path) -> None:
    torch.save(WEIGHTS | {"c": torch.tensor([1.0, torch.inf])}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"1 tensors hold NaN or infinite numbers \(c\)"):
        check_finite(tmp_path / "weights.pth")
