"""Weights in several files behind an index are one file for whoever reads them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from reca_fast.errors import UserError
from reca_fast.models.files.sharded import INDEX, open_sharded, weight_files


def folder_of(folder: Path, **files: dict[str, torch.Tensor]) -> Path:
    listed: dict[str, str] = {}
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
        listed |= dict.fromkeys(tensors, f"{name}.safetensors")
    path = folder / f"model{INDEX}"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": listed}))
    return path


def test_every_tensor_comes_from_its_file(tmp_path) -> None:
    a, b = torch.arange(6.0).view(2, 3), torch.ones(4, dtype=torch.bfloat16)
    path = folder_of(tmp_path, one={"a": a}, two={"b": b})
    assert [file.name for file in weight_files(path)] == ["one.safetensors", "two.safetensors"]
    assert weight_files(tmp_path / "one.safetensors") == [tmp_path / "one.safetensors"]
    with open_sharded(path) as weights:
        assert weights.shapes == {"a": (2, 3), "b": (4,)} and weights.dtype("b") == torch.bfloat16
        part = weights.tensor("a", (slice(0, 1), slice(1, 3)))
    assert torch.equal(part, a[:1, 1:]) and weights.path == path
    with open_sharded(tmp_path / "one.safetensors") as alone:
        assert alone.shapes == {"a": (2, 3)}


def test_an_index_that_disagrees_with_its_files_is_refused(tmp_path) -> None:
    path = folder_of(tmp_path, one={"a": torch.ones(1)}, two={"b": torch.ones(1)})
    save_file({"c": torch.ones(1)}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match="disagree about b"):
        open_sharded(path)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(UserError, match=r"two\.safetensors"):
        open_sharded(path)


@pytest.mark.parametrize("listed", [None, {}, {"a": "../elsewhere.safetensors"}, {"a": "code.bin"}, {"a": 3}])
def test_an_index_without_files_of_its_own_folder_is_refused(listed, tmp_path) -> None:
    path = tmp_path / f"model{INDEX}"
    path.write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(UserError, match=r"weight_map|no file beside it"):
        weight_files(path)
