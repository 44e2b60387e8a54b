"""Write a checkpoint folder that the authors' code loads: theirs, with the trained weights in place."""

import json
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from reca_fast.errors import UserError
from reca_fast.models.safetensors_files import open_safetensors

from .config import BagelConfig
from .model import Bagel
from .names import public_name
from .weights import WEIGHTS_FILE, check_keys

NEEDED = (
    *("llm_config.json", "vit_config.json", "config.json", "ae.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
)
"""Files without which the export would not load."""
SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


def export_folder(
    base: Path, folder: Path, config: BagelConfig, trained: Mapping[str, Tensor], dtype: torch.dtype | None
) -> None:
    """Copy `base` to `folder`, every weight in `trained` (by module name) replacing the base's.

    Only regular files that lie in `base` are copied. A link is followed while it stays inside, or leads to the blobs
    of the Hugging Face cache that `base` is a snapshot of; elsewhere it could bring in any file of this machine.

    Args:
        dtype: dtype of all weights in the file; None keeps the base file's, tensor by tensor.

    Raises:
        UserError: the folder exists and is not empty, the base is not whole, a trained weight does not fit it, or the
            disk is full.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} exists and is not empty; name another folder.")
    with torch.device("meta"):
        model = Bagel(config)
    check_keys(model, base / WEIGHTS_FILE)
    if strangers := trained.keys() - dict(model.named_parameters()).keys():
        raise UserError(f"The training checkpoint holds {min(strangers)}, which {base} has no place for.")
    names = {public_name(name): name for name in trained}
    items = [item for item in base.iterdir() if item.name != WEIGHTS_FILE and _lies_inside(base, item)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for item in items:
            shutil.copyfile(item, folder / item.name)
        partial = folder / f"{WEIGHTS_FILE}.partial"
        _write_weights(base / WEIGHTS_FILE, partial, names, trained, dtype)
        partial.rename(folder / WEIGHTS_FILE)
    except OSError as error:
        raise UserError(f"The export to {folder} failed and was removed: {error}.") from None
    finally:
        if not os.path.exists(folder / WEIGHTS_FILE):  # the last thing to be there
            shutil.rmtree(folder, ignore_errors=True)


def _lies_inside(base: Path, item: Path) -> bool:
    """Whether it is a regular file of the base; a needed one that is a link to elsewhere is a UserError."""
    root = base.resolve()
    roots = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
    if any(item.resolve().is_relative_to(place) for place in roots):
        return item.is_file()
    if item.name in NEEDED:
        raise UserError(f"{item} is a link out of its folder, to {item.resolve()}; put a copy in its place.")
    return False


def _write_weights(
    base: Path, path: Path, names: Mapping[str, str], trained: Mapping[str, Tensor], dtype: torch.dtype | None
) -> None:
    """Stream a safetensors file tensor by tensor.

    safetensors' own writer wants all tensors in memory at once, 29 GB for the real model; the format is a length, a
    JSON header and the bytes, so it is written here.
    """
    with open_safetensors(base) as source:
        keys = sorted(source.keys())
        header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        end = 0
        kinds = {}
        for key in keys:
            kinds[key] = dtype or source.get_slice(key)[:0].dtype
            shape = source.get_slice(key).get_shape()
            start, end = end, end + torch.Size(shape).numel() * kinds[key].itemsize
            header[key] = {"dtype": SAFETENSORS_DTYPES[kinds[key]], "shape": shape, "data_offsets": [start, end]}
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            for key in keys:
                tensor = trained[names[key]] if key in names else source.get_tensor(key)
                if list(tensor.shape) != header[key]["shape"]:
                    size = list(tensor.shape)
                    raise UserError(
                        f"The training checkpoint holds {names[key]} {size}, which {base} has no place for."
                    )
                file.write(tensor.to(kinds[key]).contiguous().view(-1).view(torch.uint8).numpy().data)
