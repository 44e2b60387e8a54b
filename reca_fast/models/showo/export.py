"""Writing a checkpoint folder that the authors' code reads: the base's files, with the trained weights in place."""

from collections.abc import Mapping
from pathlib import Path

import torch

from reca_fast.models.files import Change, open_weights, rewrite_weights
from reca_fast.models.files.export import exporting, refuse_filled, replacements
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
    refuse_filled(folder)
    with open_weights(weights) as stored:
        keys = {own: key for key, own in check_weights(module, stored).items()}
        changed = replacements(stored, keys, trained, base)
        files = {
            inside: files_inside(base / inside, names) for inside, names in COPIED.items() if (base / inside).is_dir()
        }
        with exporting(folder, WEIGHTS_FILES[0]) as unfinished:
            for inside, found in files.items():
                if found:
                    copy_files(found, folder / inside)
            rewrite_weights(stored, unfinished, changed=changed, added={}, dtype=dtype)
    return sorted({item.name for item in base.iterdir()} - {weights.name, *COPIED[""], *COPIED})
