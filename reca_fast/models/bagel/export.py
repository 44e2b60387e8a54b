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
from reca_fast.models.files.read import open_safetensors

from .config import CONFIG_FILES, BagelConfig, check_links
from .model import Bagel
from .names import TABLES, public_name
from .tokenizer import TOKENIZER_FILES
from .weights import WEIGHTS_FILE, check_keys, weights_file

COPIED = (
    *(*CONFIG_FILES, *TOKENIZER_FILES, "ae.safetensors"),
    *("generation_config.json", "preprocessor_config.json", "LICENSE", "LICENSE.txt", "NOTICE"),
)
"""All that goes along of the base. Other weights, shards of an optimizer and schedules belong to the base alone, and
the authors' scripts would read some of them in place of what was trained.
"""
SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


def export_folder(
    base: Path,
    folder: Path,
    config: BagelConfig,
    trained: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    weights: Path | None = None,
) -> list[str]:
    """Copy `base` to `folder`, every weight in `trained` (by module name) replacing the base's.

    Only the files of COPIED are copied, and only regular ones that lie in `base`. A link is followed while it stays
    inside, or leads to the blobs of the Hugging Face cache that `base` is a snapshot of; elsewhere it could bring in
    any file of this machine.

    Args:
        dtype: dtype of all weights in the file; None keeps the base file's, tensor by tensor.
        weights: the base's file of weights; None takes the only one there is.

    Returns:
        what else lies in the base and stays there.

    Raises:
        UserError: the folder exists and is not empty, the base is not whole or has a link that leads nowhere or out of
            it, a trained weight does not fit it, or the disk is full.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} exists and is not empty; name another folder.")
    with torch.device("meta"):
        model = Bagel(config)
    weights = weights_file(base) if weights is None else weights
    check_keys(model, weights)
    if strangers := trained.keys() - dict(model.named_parameters()).keys():
        raise UserError(f"The training checkpoint holds {min(strangers)}, which {base} has no place for.")
    names = {public_name(name): name for name in trained}
    check_links(base, COPIED)
    items = [base / name for name in COPIED if _lies_inside(base, base / name)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for item in items:
            shutil.copyfile(item, folder / item.name)
        partial = folder / f"{WEIGHTS_FILE}.partial"
        _write_weights(weights, partial, names, trained, _tables(config), dtype)
        partial.rename(folder / WEIGHTS_FILE)
    except OSError as error:
        raise UserError(f"The export to {folder} failed and was removed: {error}.") from None
    finally:
        if not os.path.exists(folder / WEIGHTS_FILE):  # the last thing to be there
            shutil.rmtree(folder, ignore_errors=True)
    return sorted({item.name for item in base.iterdir()} - {weights.name, *COPIED})


def _lies_inside(base: Path, item: Path) -> bool:
    """Whether there is such a file in the base; a link to elsewhere is a UserError."""
    root = base.resolve()
    roots = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
    if any(item.resolve().is_relative_to(place) for place in roots):
        return item.is_file()
    raise UserError(f"{item} is a link out of its folder, to {item.resolve()}; put a copy in its place.")


def _tables(config: BagelConfig) -> dict[str, Tensor]:
    """Public key -> position table, for a base that has none."""
    with torch.device("meta"):
        model = Bagel(config)
    model.fill_tables("cpu")
    return {key: model.get_buffer(key.removesuffix(".pos_embed")) for key in TABLES}


def _write_weights(
    base: Path,
    path: Path,
    names: Mapping[str, str],
    trained: Mapping[str, Tensor],
    tables: Mapping[str, Tensor],
    dtype: torch.dtype | None,
) -> None:
    """Stream a safetensors file tensor by tensor.

    safetensors' own writer wants all tensors in memory at once, 29 GB for the real model; the format is a length, a
    JSON header and the bytes, so it is written here.
    """
    with open_safetensors(base) as source:
        stored = set(source.keys())
        added = {key: table for key, table in tables.items() if key not in stored}
        keys = sorted(stored | added.keys())
        header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        end = 0
        kinds = {}
        for key in keys:
            kinds[key] = dtype or source.get_slice("llm2vae.weight" if key in added else key)[:0].dtype
            shape = list(added[key].shape) if key in added else source.get_slice(key).get_shape()
            start, end = end, end + torch.Size(shape).numel() * kinds[key].itemsize
            header[key] = {"dtype": SAFETENSORS_DTYPES[kinds[key]], "shape": shape, "data_offsets": [start, end]}
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            for key in keys:
                tensor = trained[names[key]] if key in names else added.get(key)
                tensor = source.get_tensor(key) if tensor is None else tensor
                if list(tensor.shape) != header[key]["shape"]:
                    size = list(tensor.shape)
                    raise UserError(
                        f"The training checkpoint holds {names[key]} {size}, which {base} has no place for."
                    )
                file.write(tensor.to(kinds[key]).contiguous().view(-1).view(torch.uint8).numpy().data)
