"""Writing a checkpoint folder that the authors' code reads: the base's files, with the trained weights in place."""

import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from reca_fast.errors import UserError
from reca_fast.models.files import Change, after, open_weights, rewrite_weights
from reca_fast.models.files.folder import copy_files, files_inside
from reca_fast.models.parts.clip_vision import CLIP_FILES
from reca_fast.models.parts.magvit import MAGVIT_FILES, MAGVIT_FOLDER

from .config import CONFIG_FILE
from .encoders import CLIP_FOLDER
from .network import Showo
from .tokenizer import TOKENIZER_FILES
from .weights import WEIGHTS_FILES, check_weights

COPIED = {
    "": (CONFIG_FILE, *TOKENIZER_FILES, "README.md", "LICENSE", "LICENSE.txt", "NOTICE"),
    MAGVIT_FOLDER: ("config.json", *MAGVIT_FILES),
    CLIP_FOLDER: ("config.json", "preprocessor_config.json", *CLIP_FILES),
}
"""Folder inside the base -> what is copied from it. Other weights belong to the base alone."""


def export_folder(
    base: Path, folder: Path, module: Showo, trained: Mapping[str, Change], dtype: torch.dtype | None, weights: Path
) -> list[str]:
    """Copy `base` to `folder`, every weight in `trained` replacing the base's.

    Args:
        base: the checkpoint folder that the training began with.
        folder: must not exist, or be empty.
        module: the network of the base, which may be empty.
        trained: name in the network -> weight, or what is made of the base's; each is asked for when it is written.
        dtype: of all weights in the new file; None keeps that of the base's file, tensor by tensor.
        weights: the base's file of weights.

    Returns:
        The names of what else lies in the base and was not copied (see COPIED).

    Raises:
        UserError: the folder is not empty, the base is not whole or has a link that leads nowhere or out of it, a
            trained weight does not fit it, or the folder cannot be written. What was written is removed.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} exists and is not empty; name another folder.")
    name = WEIGHTS_FILES[0]
    with open_weights(weights) as stored:
        keys = {own: key for key, own in check_weights(module, stored).items()}
        if strangers := trained.keys() - keys.keys():
            raise UserError(f"The training checkpoint holds {min(strangers)}, which {base} has no place for.")
        changed: dict[str, Callable[[Tensor], Tensor]] = {
            keys[own]: partial(_fitting, trained, own, stored.shapes[keys[own]], base) for own in trained
        }
        files = {
            inside: files_inside(base / inside, names) for inside, names in COPIED.items() if (base / inside).is_dir()
        }
        try:
            for inside, found in files.items():
                if found:
                    copy_files(found, folder / inside)
            rewrite_weights(stored, folder / f"{name}.partial", changed=changed, added={}, dtype=dtype)
            (folder / f"{name}.partial").rename(folder / name)
        except OSError as error:
            raise UserError(f"The export to {folder} failed and was removed: {error}.") from None
        finally:
            if not os.path.exists(folder / name):  # the last thing to be there
                shutil.rmtree(folder, ignore_errors=True)
    return sorted({item.name for item in base.iterdir()} - {weights.name, *COPIED[""], *COPIED})


def _fitting(trained: Mapping[str, Change], name: str, shape: tuple[int, ...], base: Path, stored: Tensor) -> Tensor:
    """A trained weight, which must have the shape of the one that it replaces."""
    tensor = after(trained[name], stored)
    if tuple(tensor.shape) != shape:
        raise UserError(
            f"The training checkpoint holds {name} {list(tensor.shape)}, which {base} has no place for: there it is "
            f"{list(shape)}."
        )
    return tensor
