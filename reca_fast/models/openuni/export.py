"""Writing a checkpoint folder that this project and, by its file of weights, the authors' code read.

The file of weights has the authors' layout: queries, connector, projector and SANA, under their names, in one flat
dictionary. It is written as the base's file was: by torch.save, tensors alone, or as safetensors. What else the folder
needs, the public models that were not trained, is copied.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from reca_fast.errors import UserError
from reca_fast.models.files import Change, Stored, check_fit, write_safetensors
from reca_fast.models.files.export import exporting, fitting, refuse_filled
from reca_fast.models.files.folder import copy_files, files_inside
from reca_fast.models.files.joined import JoinedWeights
from reca_fast.models.parts.qwen_tokenizer import TOKENIZER_FILES

from .folder import LLM, PREFIXES, SANA, VAE, OpenUniFolder
from .names import NETWORK_NAMES
from .network import OpenUni

BESIDE = {
    LLM: ("config.json", "generation_config.json", "preprocessor_config.json", "LICENSE", "README.md"),
    SANA: ("config.json",),
    VAE: ("config.json",),
}
"""Folder of a public model -> what is copied of it besides its weights and its tokenizer. SANA's own weights are not:
the trained ones stand in the file of weights.
"""


def export_folder(
    base: OpenUniFolder, folder: Path, module: OpenUni, trained: Mapping[str, Change], dtype: torch.dtype | None
) -> list[str]:
    """Write `folder` like `base`, every weight in `trained` replacing the base's.

    Args:
        base: that the training began with.
        folder: must not exist, or be empty.
        module: of the base's sizes, without weights.
        trained: name in the module -> weight, or what is made of the base's; each is asked for when it is written.
        dtype: of all weights in the new file; None keeps the base's, tensor by tensor.

    Returns:
        The names of what else lies in the base and was not copied.

    Raises:
        UserError: the folder is not empty, the base is not whole or has a link that leads nowhere or out of it, a
            trained weight does not fit it, or the folder cannot be written. What was written is removed.
    """
    refuse_filled(folder)
    parameters = {NETWORK_NAMES.key(name): (name, p.shape) for name, p in module.named_parameters()}
    if strangers := trained.keys() - {name for name, _ in parameters.values()}:
        raise UserError(f"The training checkpoint holds {min(strangers)}, which {base.path} has no place for.")
    with base.weights() as weights:
        check_fit(weights, (module, NETWORK_NAMES))
        own = {key for key, pieces in weights.sources.items() if pieces[0].weights.path == base.own}
        layout = {
            key: Stored(dtype or weights.dtype(key), shape)
            for key, shape in weights.shapes.items()
            if key in own or key.startswith(PREFIXES[SANA])
        }

        def tensor(key: str) -> Tensor:
            name, shape = parameters.get(key, ("", torch.Size()))
            return _written(base.path, weights, key, name, trained, shape)

        with exporting(folder, base.own.name) as unfinished:
            for part, copied in _files(base, weights).items():
                copy_files(copied, folder / part)
            _write(unfinished, base.own.suffix, layout, tensor)
    return sorted({item.name for item in base.path.iterdir()} - {base.own.name, LLM, SANA, VAE})


def _files(base: OpenUniFolder, weights: JoinedWeights) -> dict[str, list[Path]]:
    """Folder of a public model -> its files that are copied. Each may be a link as a whole, and to blobs inside."""
    read = {piece.weights.path for pieces in weights.sources.values() for piece in pieces}
    found = {}
    for part, names in BESIDE.items():
        inside = base.sana if part == SANA else base.path / part
        stored = [] if part == SANA else [path.name for path in read if path.parent == inside]
        indices = [path.name for path in inside.glob("*.safetensors.index.json")] if stored else []
        tokenizer = TOKENIZER_FILES if part == LLM else ()
        found[part] = files_inside(inside, [*names, *tokenizer, *sorted(stored), *indices])
    return found


def _write(path: Path, suffix: str, layout: Mapping[str, Stored], tensor: Callable[[str], Tensor]) -> None:
    """Write a file of weights in the format that `suffix` stands for."""
    if suffix == ".safetensors":
        write_safetensors(path, layout, tensor)
        return
    # In memory of their own: torch.save writes the whole storage behind a view, which may be that of a whole file.
    torch.save(
        {key: tensor(key).to(stored.dtype, copy=True).cpu().contiguous() for key, stored in layout.items()}, path
    )


def _written(
    base: Path, weights: JoinedWeights, key: str, name: str, trained: Mapping[str, Change], shape: torch.Size
) -> Tensor:
    """The tensor that stands under a key in the new file: a trained one of this name and shape in the module, or the
    base's.
    """
    stored = weights.tensor(key)
    if name not in trained:
        return stored
    return fitting(trained, name, shape, base, stored.view(shape)).detach().view(stored.shape)
