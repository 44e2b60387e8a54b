"""Reading the public checkpoint layout, strictly and without holding it in memory.

The file is memory-mapped: tensors are views of the page cache, which all processes of a host share, and each one is
copied
to its device (or its shard) on its own. Host memory therefore stays near the file's size however many ranks read it.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from reca_fast.errors import UserError

from .model import Bagel
from .names import TABLES, public_names

WEIGHTS_FILE = "ema.safetensors"


def open_weights(path: Path):
    """A memory-mapped safetensors file; a missing or damaged one is a UserError that names it."""
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; a BAGEL folder holds its weights under that name.") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); download it again.") from None


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Key -> shape of everything in a safetensors file; only its header is read."""
    with open_weights(path) as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def check_keys(model: Bagel, path: Path) -> None:
    """Refuse a file whose keys or shapes differ from the model's, naming the first few."""
    parameters = dict(model.named_parameters())
    expected = {key: tuple(parameters[name].shape) for key, name in public_names(parameters).items()}
    found = {key: shape for key, shape in stored_shapes(path).items() if key not in TABLES}
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "misshapen": [
            f"{key} {list(found[key])} instead of {list(shape)}"
            for key, shape in expected.items()
            if key in found and found[key] != shape
        ],
    }
    said = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in faults.items()
        if keys
    ]
    if said:
        raise UserError(
            f"{path} does not fit the configuration beside it: {'; '.join(said)}. Take both from one model."
        )


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

    Frozen weights on a CPU in the file's own dtype stay views of the file; trained weights are always copies.

    Raises:
        UserError: the file is missing, damaged, or has missing, unexpected or misshapen keys.
    """
    check_keys(model, path)
    parameters = dict(model.named_parameters())
    with open_weights(path) as file:
        for key, name in public_names(parameters).items():
            parameter = parameters[name]
            dtype = trained_dtype if parameter.requires_grad else frozen_dtype
            part = _local_part(parameter, file.get_slice(key))
            local = part.to(device=device, dtype=dtype, copy=parameter.requires_grad)
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
