"""The file of weights of a Show-o checkpoint folder: which one it is, and whether it fits."""

import os
from pathlib import Path

from reca_fast.errors import UserError
from reca_fast.models.files import Weights, check_fit
from reca_fast.models.files.fill import ORIGIN
from reca_fast.models.files.pth import TORCH_SUFFIXES
from reca_fast.schema import shown

from .names import NETWORK_NAMES
from .network import Showo

WEIGHTS_FILES = ("pytorch_model.safetensors", "pytorch_model.bin", "model.safetensors")
"""What the authors' releases and their trainer call the file of weights, and what others call it."""


def weights_file(folder: Path, choice: str = "auto") -> Path:
    """The file that the weights of a checkpoint folder are read from.

    Args:
        folder: the checkpoint folder.
        choice: a file's name in the folder (or a path of its own); auto takes the first of WEIGHTS_FILES that is there,
            as the authors' loader does.

    Raises:
        UserError: there is none, or `choice` is no file of weights.
    """
    if choice != "auto":
        if not choice.endswith((".safetensors", *TORCH_SUFFIXES)) or "\0" in choice:
            raise UserError(f"model.weights={shown(choice)}: weights are read from a .safetensors or .bin file alone.")
        return folder / choice
    found = [folder / name for name in WEIGHTS_FILES if os.path.lexists(folder / name)]
    if not found:
        raise UserError(
            f"{folder / WEIGHTS_FILES[0]} is missing, and so are {' and '.join(WEIGHTS_FILES[1:])}, under which names "
            "a Show-o folder holds its weights."
        )
    return found[0]


def check_weights(module: Showo, weights: Weights) -> dict[str, str]:
    """Refuse a file whose keys or shapes differ from the network's.

    Returns:
        Key in the file -> name in the network, of every tensor that `fill` reads.

    Raises:
        UserError: naming the tensors; or the setting that does not go with the file.
    """
    has = any(key.startswith("mm_projector.") for key in weights.shapes)
    if has != (module.mm_projector is not None):
        kind, fits = ("a", "true") if has else ("no", "false")
        raise UserError(
            f"{weights.path} holds {kind} mm_projector, the part behind CLIP, but its config.json has w_clip_vit="
            f"{'false' if has else 'true'}; take both files from one checkpoint (with these weights it is {fits})."
        )
    return check_fit(weights, (module, NETWORK_NAMES), origin=f"{ORIGIN} (a published show-o folder)")
