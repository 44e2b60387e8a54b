"""Files of tensors are mapped read-only and shared, whatever their size, and none that lies about itself is opened."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from reca_fast.mapped import DTYPES, MappedFile


def written(path: Path, header: dict, data: bytes, padding: int = 0) -> Path:
    """A file made by hand, that nobody has checked."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + padding)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_tensors_of_every_dtype_come_out_as_they_went_in(tmp_path):
    numbers = torch.arange(24).view(2, 3, 4)
    tensors = {code: numbers.to(dtype) for code, dtype in DTYPES.items()}
    tensors |= {"none": torch.zeros(0, 3), "one": torch.tensor(5.0)}
    save_file(tensors, tmp_path / "a.safetensors", {"by": "us"})
    with MappedFile(tmp_path / "a.safetensors") as file:
        assert file.metadata == {"by": "us"}
        assert file.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        found = {name: file.tensor(name) for name in tensors}
        rows = file.tensor("I32", (slice(1, 2), slice(0, 3), slice(2, 4)))
    for name, tensor in tensors.items():  # valid after the file was closed
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8)), name
    assert torch.equal(rows, numbers[1:2, :, 2:4].int())


def test_the_mapping_is_read_only_and_shared_and_reserves_nothing(tmp_path):
    """A terabyte of holes: no host has that much memory, and a private writable mapping of it would be refused."""
    size = 1 << 40
    path = written(tmp_path / "large.safetensors", {"a": entry(0, size, shape=(1 << 19, 1 << 19))}, b"")
    header = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(header + size)
    with MappedFile(path) as opened:
        assert opened.tensor("a")[-1, -3:].tolist() == [0, 0, 0]
        kinds = [line.split()[1] for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    assert kinds == ["r--s"]


def test_numbers_that_no_address_fits_are_read_all_the_same(tmp_path):
    data = torch.tensor([1.5, -2.5])
    path = written(tmp_path / "odd.safetensors", {"a": entry(0, 8)}, data.numpy().tobytes(), padding=3)
    assert torch.equal(MappedFile(path).tensor("a"), data)


def test_a_dtype_that_torch_has_not_is_named_and_not_read(tmp_path):
    path = written(tmp_path / "new.safetensors", {"a": entry(0, 2, "F8_E8M0")}, bytes(2))
    with MappedFile(path) as file:
        assert file.codes == {"a": "F8_E8M0"}
        with pytest.raises(KeyError, match="F8_E8M0"):
            file.tensor("a")


LIES = {
    "overlap": {"a": entry(0, 8), "b": entry(4, 12)},
    "the same place": {"a": entry(0, 8), "b": entry(0, 8)},
    "a gap": {"a": entry(0, 8), "b": entry(12, 20)},
    "begins late": {"a": entry(4, 12)},
    "ends early": {"a": entry(0, 8)},
    "ends late": {"a": entry(0, 32, shape=(8,))},
    "backwards": {"a": entry(8, 0)},
    "another shape": {"a": entry(0, 16, shape=(2,))},
    "no dtype": {"a": entry(0, 16, "F33", (4,))},
    "negative": {"a": entry(0, 16, shape=(-4, -1))},
    "more than there are addresses": {"a": entry(0, 16, shape=(2**63, 2**63))},
    "no place": {"a": {"dtype": "F32", "shape": [4]}},
}


@pytest.mark.parametrize("header", LIES.values(), ids=LIES)
def test_a_header_that_lies_is_refused(header, tmp_path):
    with pytest.raises(SafetensorError):
        MappedFile(written(tmp_path / "a.safetensors", header, bytes(16)))


@pytest.mark.parametrize("data", [b"", b"\x05", struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2) + b"[]"])
def test_what_is_no_header_is_refused(data, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(SafetensorError):
        MappedFile(tmp_path / "a.safetensors")
