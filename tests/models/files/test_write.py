"""Files of weights are written tensor by tensor, and safetensors reads them."""

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reca_fast.models.files import open_weights, rewrite_weights, write_safetensors
from reca_fast.models.files.write import Stored

TENSORS = {
    "odd": torch.arange(3.0).bfloat16(),  # six bytes: what follows must still begin at a multiple of its size
    "wide": torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    "plain": torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).T,
    "half": torch.ones(1, dtype=torch.float16),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
}


def write(path: Path, **dtypes: torch.dtype) -> None:
    layout = {key: Stored(dtypes.get(key, x.dtype), tuple(x.shape)) for key, x in TENSORS.items()}
    write_safetensors(path, layout, TENSORS.__getitem__)


def test_what_is_written_is_what_safetensors_reads(tmp_path) -> None:
    write(tmp_path / "out.safetensors", plain=torch.bfloat16)
    got = load_file(tmp_path / "out.safetensors")
    assert got.keys() == TENSORS.keys()
    for key, tensor in got.items():
        wanted = TENSORS[key].to(torch.bfloat16 if key == "plain" else TENSORS[key].dtype)
        assert tensor.dtype is wanted.dtype and torch.equal(tensor, wanted), key


def test_tensors_begin_at_multiples_of_their_size(tmp_path) -> None:
    path = tmp_path / "out.safetensors"
    write(path)
    assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 8 == 0
    with open_weights(path) as weights:
        assert all(weights.tensor(key).data_ptr() % TENSORS[key].itemsize == 0 for key in TENSORS if key != "empty")


def test_a_tensor_of_another_shape(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"a has the shape \[2\], not \[3\]"):
        write_safetensors(tmp_path / "out", {"a": Stored(torch.float32, (3,))}, lambda key: torch.ones(2))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_file_with_some_tensors_changed_and_some_added(dtype, tmp_path) -> None:
    base = {"kept": torch.ones(2, dtype=torch.float16), "changed": torch.zeros(3), "table": torch.tensor([2, 1])}
    save_file(base, tmp_path / "base.safetensors")
    new, added = torch.full((3,), 2.0), torch.full((1,), 3.0)
    with open_weights(tmp_path / "base.safetensors") as weights:
        rewrite_weights(
            weights,
            tmp_path / "out.safetensors",
            changed={"changed": lambda old: old + 2},
            added={"added": added},
            dtype=dtype,
        )
    got = load_file(tmp_path / "out.safetensors")
    assert torch.equal(got.pop("table"), base["table"])  # whole numbers stay what they are
    wanted = {"kept": base["kept"], "changed": new, "added": added}
    assert got.keys() == wanted.keys()
    for key, tensor in got.items():
        assert tensor.dtype is (dtype or wanted[key].dtype) and torch.equal(tensor, wanted[key].to(tensor.dtype))
