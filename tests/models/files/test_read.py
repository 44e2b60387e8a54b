"""Files of weights are opened strictly: what is missing, damaged or no weight is one sentence."""

import errno
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from reca_fast.errors import UserError
from reca_fast.models.files import check_finite, open_weights, stored_shapes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(600.0).view(20, 30), "b": torch.ones(4, dtype=torch.bfloat16)}, path)
    return path


def test_shapes_dtypes_and_tensors(path) -> None:
    with open_weights(path) as weights:
        assert weights.shapes == stored_shapes(path) == {"a": (20, 30), "b": (4,)}
        assert weights.dtype("a") is torch.float32 and weights.dtype("b") is torch.bfloat16
        whole, rows = weights.tensor("a"), weights.tensor("a", (slice(2, 4), slice(0, 30)))
    assert torch.equal(whole, torch.arange(600.0).view(20, 30)) and torch.equal(rows, whole[2:4])


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_file_is_named(length, path) -> None:
    os.truncate(path, length if length >= 0 else path.stat().st_size + length)
    with pytest.raises(UserError, match=r"weights\.safetensors is not a whole safetensors file"):
        open_weights(path)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_a_missing_file_is_named(name, tmp_path) -> None:
    with pytest.raises(UserError, match=f"{re.escape(name)} is missing; a checkpoint folder holds it"):
        open_weights(tmp_path / name)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_a_forbidden_file_is_not_called_missing(name, tmp_path, monkeypatch) -> None:
    """Tests may run as root, whom nothing is forbidden."""
    (tmp_path / name).touch()

    def forbidden(self, *args, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(UserError, match=f"{re.escape(name)} cannot be read: Permission denied" + r"\.$"):
        open_weights(tmp_path / name)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_a_pipe_is_not_waited_for(name, tmp_path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{re.escape(name)} is no file of weights"):
        open_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.bool, "BOOL")]
)
def test_what_is_no_weight(dtype, name, tmp_path) -> None:
    save_file({"a": torch.zeros(2).to(dtype)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=f"holds a as {name}; weights must be F64, F32, F16 or BF16"):
        open_weights(tmp_path / "weights.safetensors")


def test_numbers_that_are_none_are_named(tmp_path) -> None:
    tensors = {name: torch.tensor([1.0, torch.nan if name < "e" else 2.0]) for name in "abcdef"}
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"4 tensors hold NaN or infinite numbers \(a, b, c, \.\.\.\)"):
        check_finite(tmp_path / "weights.safetensors")
    save_file({key: tensors[key] for key in "ef"}, tmp_path / "whole.safetensors")
    check_finite(tmp_path / "whole.safetensors")
