"""A checkpoint is recognised by the contents of its files, wherever they lie."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from reca_fast.errors import UserError
from reca_fast.models.files import identity, open_weights
from reca_fast.models.files.identity import identity_of_files, identity_of_tensors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 64)
    return path


def test_a_copy_is_the_same_and_a_changed_file_is_not(path, tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.copy(path, tmp_path / "elsewhere" / "weights"))
    before = identity_of_files([path])
    assert identity_of_files([moved]) == before and before.keys() == {"weights"}
    for change in (b"x", b""):  # another byte at the end, and one byte less
        moved.write_bytes(path.read_bytes()[:-1] + change)
        assert identity_of_files([moved]) != before


def test_of_a_large_file_the_beginning_and_pieces_are_read(path, monkeypatch) -> None:
    """Names and places of the tensors stand at the beginning; training changes every tensor, so pieces suffice."""
    monkeypatch.setattr(identity, "WHOLE", 1000)
    monkeypatch.setattr(identity, "BEGINNING", 16)
    monkeypatch.setattr(identity, "BLOCKS", 3)
    monkeypatch.setattr(identity, "BLOCK", 16)
    content, before = path.read_bytes(), identity_of_files([path])
    for place, is_read in ((0, True), (len(content) // 4, False), (len(content) // 2, True), (len(content) - 1, True)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert (identity_of_files([path]) != before) == is_read, place


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match="gone is missing"):
        identity_of_files([tmp_path / "gone"])


def test_tensors_are_told_by_what_is_read_of_them(tmp_path) -> None:
    """By names, numbers and settings; a prefix, other tensors of the file and their order have no part."""

    def identity(tensors: dict[str, Tensor], *settings: object, under: str = "") -> str:
        save_file(tensors, tmp_path / "weights.safetensors")
        with open_weights(tmp_path / "weights.safetensors") as weights:
            return identity_of_tensors(weights, {name: f"{under}{name}" for name in ("a", "b")}, *settings)

    a, b = torch.arange(6.0).view(2, 3), torch.tensor(0.5)
    plain = identity({"a": a, "b": b}, 3)
    assert identity({"vit.b": b, "more": b + 1, "vit.a": a}, 3, under="vit.") == plain
    others = [({"a": a, "b": b}, 4), ({"a": a.view(3, 2), "b": b}, 3), ({"a": a, "b": b.double()}, 3)]
    others.append(({"a": a + torch.tensor([0, 0, 1e-6]), "b": b}, 3))
    assert len({plain, *(identity(tensors, setting) for tensors, setting in others)}) == 5
    with pytest.raises(UserError, match=r"weights\.safetensors lacks b;"):
        identity({"a": a})


def test_files_of_one_name_are_told_apart_by_their_folders(path, tmp_path) -> None:
    for part in ("vae", "llm"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(part)
    found = identity_of_files([path, tmp_path / "vae" / "config.json", tmp_path / "llm" / "config.json"])
    assert found.keys() == {"weights", "vae/config.json", "llm/config.json"} and len(set(found.values())) == 3
