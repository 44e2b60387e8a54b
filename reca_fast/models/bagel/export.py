"""Writing a checkpoint folder that the authors' code reads: the base's files, with the trained weights in place."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from reca_fast.models.files import Change, open_weights, rewrite_weights
from reca_fast.models.files.export import exporting, refuse_filled, replacements
from reca_fast.models.files.folder import copy_files, files_inside
from reca_fast.models.parts.qwen_tokenizer import TOKENIZER_FILES

from .config import CONFIG_FILES, BagelConfig
from .names import TABLES
from .network import Bagel
from .weights import WEIGHTS_FILE, check_weights, weights_file

COPIED = (
    *(*CONFIG_FILES, *TOKENIZER_FILES, "ae.safetensors"),
    *("generation_config.json", "preprocessor_config.json", "LICENSE", "LICENSE.txt", "NOTICE"),
)
"""All that is copied from the base. Other weights, shards of an optimizer and schedules belong to the base alone, and
the authors' scripts would read some of them in place of what was trained.
"""


def export_folder(
    base: Path,
    folder: Path,
    config: BagelConfig,
    trained: Mapping[str, Change],
    dtype: torch.dtype | None,
    weights: Path | None = None,
) -> list[str]:
    """Copy `base` to `folder`, every weight in `trained` replacing the base's.

    Args:
        base: the checkpoint folder that the training began with.
        folder: must not exist, or be empty.
        config: the architecture of the base.
        trained: name in the model -> weight, or what is made of the base's; each is asked for when it is written.
        dtype: of all weights in the new file; None keeps that of the base's file, tensor by tensor.
        weights: the base's file of weights; None takes the only one there is.

    Returns:
        The names of what else lies in the base and was not copied (see COPIED).

    Raises:
        UserError: the folder is not empty, the base is not whole or has a link that leads nowhere or out of it, a
            trained weight does not fit it, or the folder cannot be written. What was written is removed.
    """
    refuse_filled(folder)
    with torch.device("meta"):
        model = Bagel(config, freeze_und=False)
    weights = weights_file(base) if weights is None else weights
    with open_weights(weights) as stored:
        keys = {name: key for key, name in check_weights(model, stored).items()}
        changed = replacements(stored, keys, trained, base)
        tables = {key: table for key, table in _tables(model).items() if key not in stored.shapes}
        added = {key: table.to(stored.dtype("llm2vae.weight")) for key, table in tables.items()}
        files = files_inside(base, COPIED)
        with exporting(folder, WEIGHTS_FILE) as unfinished:
            copy_files(files, folder)
            rewrite_weights(stored, unfinished, changed=changed, added=added, dtype=dtype)
    return sorted({item.name for item in base.iterdir()} - {weights.name, *COPIED})


def _tables(model: Bagel) -> dict[str, Tensor]:
    """Key in the file -> position table, computed (a base may lack them)."""
    model.fill_tables("cpu")
    return {key: model.get_buffer(key.removesuffix(".pos_embed")) for key in TABLES}
