"""The files of weights of a VLM's folder: which they are, whether they fit, and filling the modules from them."""

import os
from pathlib import Path

import torch
from torch import nn

from reca_fast.errors import UserError
from reca_fast.models.files import Place, Placement, check_fit, fill, uniform
from reca_fast.models.files.sharded import INDEX, open_sharded
from reca_fast.schema import shown

from .decoder import FreshDecoder, ReconstructionDecoder
from .family import Family
from .names import names_of
from .tables import give_tables
from .vlm import LanguageSide, Tower

WEIGHTS_FILES = ("model.safetensors", f"model{INDEX}")


def weights_file(folder: Path, choice: str = "auto") -> Path:
    """The file that the weights are read from, or the index of several.

    Args:
        choice: a file's name in the folder (or a path of its own); auto takes the only one of WEIGHTS_FILES.

    Raises:
        UserError: auto finds both or none, or `choice` is no safetensors file and no index of such.
    """
    if choice != "auto":
        if not choice.endswith((".safetensors", INDEX)) or "\0" in choice:
            raise UserError(f"model.weights={shown(choice)}: weights are read from .safetensors files alone.")
        return folder / choice
    found = [name for name in WEIGHTS_FILES if os.path.lexists(folder / name)]
    if len(found) > 1:
        raise UserError(f"{folder} holds {' and '.join(found)}: name the one to read with --model.weights.")
    if not found:
        raise UserError(
            f"{folder / WEIGHTS_FILES[0]} is missing, and so is {WEIGHTS_FILES[1]}; download the folder's safetensors "
            "files (.bin files are never read: they can run code)."
        )
    return folder / found[0]


def holds_own_head(path: Path, family: Family) -> bool:
    """Whether a file holds a head that is not its embedding table again. Configurations do not tell: InternVL's says
    tied unless it is told otherwise, and transformers too believes the file. A few rows are compared.

    Raises:
        UserError: a file is missing or damaged.
    """
    with open_sharded(path) as weights:
        names = names_of(weights, family).language
        head, table = (names.key(f"{name}.weight") for name in ("lm_head", "embed_tokens"))
        rows = (slice(0, 64),)
        return head in weights.shapes and not torch.equal(weights.tensor(head, rows), weights.tensor(table, rows))


def check_vlm(language: LanguageSide, tower: Tower, path: Path) -> None:
    """Refuse files whose keys or shapes differ from the modules'.

    Raises:
        UserError: naming the tensors.
    """
    with open_sharded(path) as weights:
        names = names_of(weights, tower.family)
        check_fit(weights, (language, names.language), (tower, names.tower))


def fill_language(language: LanguageSide, family: Family, path: Path, place: Place, prefix: str = "") -> torch.device:
    """Give the language side its weights and tables.

    Args:
        language: on the meta device, perhaps sharded; filled in place.
        path: from `weights_file`.
        place: says dtype and device by name.
        prefix: of the names in the module that `place` knows.

    Returns:
        The device that it is on.

    Raises:
        UserError: a file is missing or damaged, or its tensors are not the model's.
    """
    with open_sharded(path) as weights:
        fill(language, weights, within(place, prefix), names_of(weights, family).language)
    return _tables_beside_norm(language, place, prefix)


def _tables_beside_norm(language: LanguageSide, place: Place, prefix: str) -> torch.device:
    device = torch.device(place(f"{prefix}norm.weight", language.norm.weight).device)  # type: ignore[arg-type]
    give_tables(language, language.tables, device)
    return device


def fill_tower(tower: Tower, path: Path, dtype: torch.dtype, device: torch.device | str) -> None:
    """Give the tower its weights and tables.

    Raises:
        UserError: see `fill_language`.
    """
    with open_sharded(path) as weights:
        fill(tower, weights, uniform(dtype, device), names_of(weights, tower.family).tower)
    give_tables(tower, tower.tables, device)


def fill_decoder(decoder: ReconstructionDecoder, place: Place, prefix: str) -> None:
    """Give the decoder the weights that every new one has."""
    fill(decoder, FreshDecoder(decoder), within(place, prefix))


def within(place: Place, prefix: str) -> Place:
    """A place for a part of a module, whose names there begin with `prefix`."""

    def placed(name: str, tensor: torch.Tensor) -> Placement:
        return place(prefix + name, tensor)

    return placed


def numbers(*modules: nn.Module) -> int:
    """How many numbers these modules hold as parameters."""
    return sum(p.numel() for p in {id(p): p for module in modules for p in module.parameters()}.values())
