"""Writing the VLM's own folder again, as transformers' from_pretrained reads it. The decoder is left behind."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from reca_fast.errors import UserError
from reca_fast.models.files import Change, Weights, open_weights, rewrite_weights
from reca_fast.models.files.export import fitting, refuse_filled
from reca_fast.models.files.folder import copy_files, files_inside, read_object, write_object
from reca_fast.models.files.sharded import open_sharded, weight_files

from .chat import TOKENIZER_FILES
from .encoders import PREPROCESSOR_FILES
from .names import names_of
from .vae import CONFIG as VAE_CONFIG
from .vae import WEIGHTS as VAE_WEIGHTS
from .vlm import VLM

CONFIG, VAE_FOLDER = "config.json", "vae"
COPIED = (
    *(CONFIG, *TOKENIZER_FILES, *PREPROCESSOR_FILES),
    *("generation_config.json", "video_preprocessor_config.json", "LICENSE", "LICENSE.txt", "NOTICE", "README.md"),
)
"""All that is copied from the base, and the folder of the VAE, so that an export can be trained on. Code is never."""
LANGUAGE, DECODER = "language.", "decoder."
"""Beginnings of the names in the trained module."""


def export_folder(
    base: Path, folder: Path, vlm: VLM, trained: Mapping[str, Change], dtype: torch.dtype | None, weights: Path
) -> list[str]:
    """Copy `base` to `folder`, every weight of the VLM in `trained` replacing the base's.

    Args:
        base: the checkpoint folder that the training began with.
        folder: must not exist, or be empty.
        vlm: of the base, on the meta device.
        trained: name in the trained module -> weight, or what is made of the base's; the decoder's are passed over.
        dtype: of all weights in the new files; None keeps that of the base, tensor by tensor.
        weights: the base's file of weights, or the index of several.

    Returns:
        The names of what else lies in the base and was not copied.

    Raises:
        UserError: the folder is not empty, the base is not whole or has a link that leads out of it, a trained weight
            does not fit it, or the folder cannot be written. What was written is removed.
    """
    refuse_filled(folder)
    with open_sharded(weights) as stored:
        changed = _changes(stored, vlm, trained, base)
    files = files_inside(base, COPIED)
    of_vae = files_inside(base / VAE_FOLDER, (VAE_CONFIG, VAE_WEIGHTS)) if (base / VAE_FOLDER).is_dir() else []
    shards, done = weight_files(weights), False
    try:
        copy_files(files, folder)
        if of_vae:
            copy_files(of_vae, folder / VAE_FOLDER)
        for shard in shards:
            with open_weights(shard) as part:
                inside = {key: change for key, change in changed.items() if key in part.shapes}
                rewrite_weights(part, folder / shard.name, changed=inside, added={}, dtype=dtype)
        if weights not in shards:
            _write_index(weights, folder, [folder / shard.name for shard in shards])
        if dtype is not None:
            _state_dtype(folder / CONFIG, dtype)
        done = True
    except OSError as error:
        raise UserError(f"The export to {folder} failed and was removed: {error}.") from None
    finally:
        if not done:
            shutil.rmtree(folder, ignore_errors=True)
    written = {weights.name, VAE_FOLDER, *COPIED, *(shard.name for shard in shards)}
    return sorted({item.name for item in base.iterdir()} - written)


def _changes(
    stored: Weights, vlm: VLM, trained: Mapping[str, Change], base: Path
) -> dict[str, Callable[[Tensor], Tensor]]:
    names = names_of(stored, vlm.family).language
    changed: dict[str, Callable[[Tensor], Tensor]] = {}
    known = dict(vlm.language.named_parameters())
    for name in trained:
        if name.startswith(DECODER):
            continue
        own = name.removeprefix(LANGUAGE)
        key = names.key(own)
        if own not in known or key not in stored.shapes:
            raise UserError(f"The training checkpoint holds {name}, which {base} has no place for.")
        changed[key] = partial(fitting, trained, name, stored.shapes[key], base)
    return changed


def _write_index(index: Path, folder: Path, shards: list[Path]) -> None:
    """The base's index, with the size that the new files have."""
    values = read_object(index)
    size = 0
    for shard in shards:
        with shard.open("rb") as file:
            size += os.path.getsize(shard) - 8 - int.from_bytes(file.read(8), "little")
    metadata = values.get("metadata")
    values["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), "total_size": size}
    write_object(folder / index.name, values)


def _state_dtype(path: Path, dtype: torch.dtype) -> None:
    """Say the new dtype in config.json, where it says one: from_pretrained goes by it."""
    values = json.loads(path.read_text(encoding="utf-8"))
    name = str(dtype).removeprefix("torch.")
    for part in (values, *(values.get(key) for key in ("text_config", "vision_config"))):
        for key in ("dtype", "torch_dtype"):
            if isinstance(part, dict) and key in part:
                part[key] = name
    write_object(path, values)
