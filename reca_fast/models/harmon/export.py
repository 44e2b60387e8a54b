"""Writing a checkpoint folder that the authors' code reads: the base's files, with the trained weights in place."""

from collections.abc import Mapping
from pathlib import Path

import torch

from reca_fast.models.files import Change, rewrite_weights
from reca_fast.models.files.export import exporting, refuse_filled, replacements
from reca_fast.models.files.folder import copy_files, files_inside
from reca_fast.models.files.pth import TORCH_SUFFIXES
from reca_fast.models.files.sharded import open_sharded, weight_files
from reca_fast.models.files.write_torch import rewrite_torch
from reca_fast.models.parts.qwen_tokenizer import TOKENIZER_FILES

from .config import HarmonConfig
from .names import EMBEDDING, HEAD
from .network import Harmon
from .weights import HF_FILES, VAE_FILE, check_weights, is_authors

COPIED = (
    *("config.json", VAE_FILE, *TOKENIZER_FILES),
    *("generation_config.json", "preprocessor_config.json", "LICENSE", "LICENSE.txt", "NOTICE"),
)
"""What is copied from the base, beside the code (*.py) that a folder of transformers brings along."""


def export_folder(
    base: Path,
    folder: Path,
    config: HarmonConfig,
    trained: Mapping[str, Change],
    dtype: torch.dtype | None,
    weights: Path,
) -> list[str]:
    """Copy `base` to `folder`, every weight in `trained` replacing the base's.

    A .pth stays a .pth of the same name; weights in safetensors become one model.safetensors.

    Args:
        base: the checkpoint folder that the training began with.
        folder: must not exist, or be empty.
        config: the architecture of the base.
        trained: name in the model -> weight, or what is made of the base's; each is asked for when it is written.
        dtype: of all weights in the new file; None keeps that of the base's file, tensor by tensor.
        weights: the base's file of weights.

    Returns:
        The names of what else lies in the base and was not copied (see COPIED).

    Raises:
        UserError: the folder is not empty, the base is not whole or has a link that leads nowhere or out of it, a
            trained weight does not fit it, or the folder cannot be written. What was written is removed.
    """
    refuse_filled(folder)
    torch_file = weights.suffix in TORCH_SUFFIXES
    authors = weights.name if is_authors(weights.name) else "harmon.pth"
    name = authors if torch_file else HF_FILES[0]
    with torch.device("meta"):
        module = Harmon(config)
    with open_sharded(weights) as stored:
        keys = {name: key for key, name in check_weights(module, stored).items()}
        changed = replacements(stored, keys, trained, base)
        if HEAD in stored.shapes and EMBEDDING in changed:
            changed[HEAD] = changed[EMBEDDING]
        code = sorted(path.name for path in base.glob("*.py"))
        files = files_inside(base, (*COPIED, *code))
        read = [path.name for path in weight_files(weights)]
        rewrite = rewrite_torch if torch_file else rewrite_weights
        with exporting(folder, name) as unfinished:
            copy_files(files, folder)
            rewrite(stored, unfinished, changed=changed, added={}, dtype=dtype)
    return sorted({item.name for item in base.iterdir()} - {weights.name, *read, *COPIED, *code})
