"""The file of weights of a BAGEL checkpoint folder: which one it is, whether it fits, and filling the model from it."""

import math
import os
from dataclasses import replace
from pathlib import Path

from torch import nn

from reca_fast.errors import UserError
from reca_fast.models.files import NameTable, Place, Weights, check_fit, fill, open_weights, stored_shapes
from reca_fast.models.files.fill import ORIGIN
from reca_fast.models.parts.host_table import tables_on_host
from reca_fast.models.parts.siglip import SiglipNaViT
from reca_fast.schema import shown

from .names import NETWORK_NAMES, TABLES, VIT_NAMES
from .network import Bagel

WEIGHTS_FILE = "ema.safetensors"
"""The file that an export has: what the authors' app reads, and their scripts when given --use-ema."""
WEIGHTS_FILES = (WEIGHTS_FILE, "model.safetensors", "model_bf16.safetensors")
"""What the authors' releases and their trainer call a file of weights."""


def weights_file(folder: Path, choice: str = "auto") -> Path:
    """The file that the weights of a checkpoint folder are read from.

    Args:
        folder: the checkpoint folder.
        choice: a file's name in the folder (or a path of its own); auto takes the only one of WEIGHTS_FILES.

    Raises:
        UserError: auto finds several or none, or `choice` is no safetensors file.
    """
    if choice != "auto":
        if not choice.endswith(".safetensors") or "\0" in choice:
            raise UserError(f"model.weights={shown(choice)}: weights are read from a single .safetensors file alone.")
        return folder / choice
    found = [name for name in WEIGHTS_FILES if os.path.lexists(folder / name)]
    if len(found) > 1:
        raise UserError(
            f"{folder} holds {' and '.join(found)}: name the one to read with --model.weights (verify takes --weights, "
            "export --base_weights). In a folder of the authors' trainer ema.safetensors is the moving average, "
            "model.safetensors holds the trained weights."
        )
    if not found:
        others = sorted(path.name for path in folder.glob("*.safetensors") if path.name != "ae.safetensors")
        named = f"; to read {' or '.join(others[:3])}, name it with --model.weights" if others else ""
        raise UserError(
            f"{folder / WEIGHTS_FILE} is missing, and so are {' and '.join(WEIGHTS_FILES[1:])}, under which names a "
            f"checkpoint folder holds its weights{named}."
        )
    return folder / found[0]


def check_weights(model: Bagel, weights: Weights, vit: SiglipNaViT | None = None) -> dict[str, str]:
    """Refuse a file whose keys or shapes differ from the model's. It may lack the position tables.

    Returns:
        Key in the file -> name in the model, of every tensor that `fill` reads.

    Raises:
        UserError: naming the tensors; and, when a position table has another size, the setting that fits it.
    """
    also: list[tuple[nn.Module, NameTable]] = [] if vit is None else [(vit, VIT_NAMES)]
    also += [] if model.unread is None else [(model.unread, NETWORK_NAMES)]
    read = check_fit(weights, (model, NETWORK_NAMES), *also, origin=f"{ORIGIN} (BAGEL-7B-MoT's ema.safetensors)")
    for key, setting in TABLES.items():
        wanted = tuple(model.get_buffer(key.removesuffix(".pos_embed")).shape)
        stored = weights.shapes.get(key, wanted)
        if stored != wanted:
            side = math.isqrt(math.prod(stored) // wanted[1])
            fits = (side * side, wanted[1]) == stored
            remedy = f"set {setting} of bagel_config in config.json to {side}" if fits else "take another file"
            raise UserError(
                f"{weights.path} holds {key} {list(stored)}, the configuration beside it wants {list(wanted)}: "
                f"{remedy}."
            )
    return read


def missing_tables(path: Path) -> list[str]:
    """The position tables that a file lacks. The authors' code reads them from the file; here they are computed."""
    return sorted(TABLES.keys() - stored_shapes(path).keys())


def fill_bagel(model: Bagel, path: Path, place: Place) -> None:
    """Give a model, built on the meta device and perhaps sharded, the weights of a file; compute its position tables.

    Args:
        model: filled in place.
        path: a file in the public layout.
        place: dtype and device of each parameter. The tables go to the device of the last layer norm. A frozen token
            embedding stays on the host, a view of the file.

    Raises:
        UserError: the file is missing, damaged, or has missing, unexpected or misshapen tensors.
    """
    with open_weights(path) as weights:
        check_weights(model, weights)
        unread = () if model.unread is None else model.unread.state_dict()
        known = replace(NETWORK_NAMES, ignored=NETWORK_NAMES.ignored | {NETWORK_NAMES.key(name) for name in unread})
        fill(model, weights, tables_on_host(model, place), known)
    model.fill_tables(model.norm_gen.weight.device)
