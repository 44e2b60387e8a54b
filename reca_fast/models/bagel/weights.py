"""Reading the public checkpoint layout, strictly and without holding it in memory.

The file is memory-mapped: tensors are views of the page cache, which all processes of a host share, and each one is
copied to its device (or its shard) on its own. Host memory therefore stays near the file's size however many ranks read
it.
"""

import math
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from reca_fast.errors import UserError
from reca_fast.models.files.read import check_layout, open_safetensors, stored_shapes
from reca_fast.schema import shown

from .model import Bagel
from .names import TABLES, public_names

WEIGHTS_FILE = "ema.safetensors"
"""The file that an export has: what the authors' app reads, and their scripts when given --use-ema."""
WEIGHTS_FILES = (WEIGHTS_FILE, "model.safetensors", "model_bf16.safetensors")
"""What the authors' releases and their trainer call a file of weights."""


def weights_file(folder: Path, choice: str = "auto") -> Path:
    """The file that the weights of a checkpoint folder are read from.

    Args:
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


def check_keys(model: Bagel, path: Path) -> None:
    """Refuse a file whose keys or shapes differ from the model's. Position tables may be absent, not of another size.

    Raises:
        UserError: naming the tensors, and of a table the setting that fits it.
    """
    parameters = dict(model.named_parameters())
    expected = {key: tuple(parameters[name].shape) for key, name in public_names(parameters).items()}
    stored = stored_shapes(path)
    check_layout(path, expected, {key: shape for key, shape in stored.items() if key not in TABLES})
    for key, setting in TABLES.items():
        wanted = tuple(model.get_buffer(key.removesuffix(".pos_embed")).shape)
        if key in stored and stored[key] != wanted:
            side = math.isqrt(math.prod(stored[key]) // wanted[1])
            fits = (side * side, wanted[1]) == stored[key]
            remedy = f"set {setting} of bagel_config in config.json to {side}" if fits else "take another file"
            raise UserError(
                f"{path} holds {key} {list(stored[key])}, the configuration beside it wants {list(wanted)}: {remedy}."
            )


def missing_tables(path: Path) -> list[str]:
    """Position tables that a file lacks. Here they are computed; the authors' code reads them from the file."""
    return sorted(TABLES.keys() - stored_shapes(path).keys())


def _local_part(parameter: Tensor, tensor_slice) -> Tensor:
    """The rows of a file's tensor that this rank's shard of `parameter` holds, still memory-mapped."""
    if not isinstance(parameter, DTensor):
        return tensor_slice[...]
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return tensor_slice[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]


def load_weights(
    model: Bagel,
    path: Path,
    *,
    device: torch.device | str,
    trained_dtype: torch.dtype,
    frozen_dtype: torch.dtype,
) -> None:
    """Fill a model that was built on the meta device (and possibly sharded) from a public-layout file.

    Frozen weights on a CPU in the file's own dtype stay views of the file; trained weights are always copies. No more
    than one tensor is held beside the model.

    Raises:
        UserError: the file is missing, damaged, or has missing, unexpected or misshapen keys.
    """
    check_keys(model, path)
    parameters = dict(model.named_parameters())
    with open_safetensors(path) as file:
        for key, name in public_names(parameters).items():
            parameter = parameters[name]
            dtype = trained_dtype if parameter.requires_grad else frozen_dtype
            part = _local_part(parameter, file.get_slice(key))
            # Moved in the file's dtype and cast there: one thread of the host would take minutes for 14 G numbers.
            there = part.to(device)
            local = there.to(dtype, copy=parameter.requires_grad and there is part)
            if isinstance(parameter, DTensor):
                local = DTensor.from_local(
                    local,
                    parameter.device_mesh,
                    parameter.placements,
                    run_check=False,
                    shape=parameter.shape,
                    stride=parameter.stride(),
                )
            owner, leaf = name.rsplit(".", 1)
            setattr(model.get_submodule(owner), leaf, nn.Parameter(local, requires_grad=parameter.requires_grad))
    model.fill_tables(device)
