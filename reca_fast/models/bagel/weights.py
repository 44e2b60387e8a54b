"""Reading and writing the public checkpoint layout, strictly and without holding it in memory.

The file is memory-mapped: tensors are views of the page cache, which all processes of a host share, and each one is copied
to its device (or its shard) on its own. Host memory therefore stays near the file's size however many ranks read it.
"""

from collections.abc import Callable, Iterable
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


def check_keys(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], path: Path) -> None:
    """Refuse a file whose keys or shapes differ from the model's, naming the first few."""
    problems = [
        (f"{len(names)} {what}", ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else ""))
        for what, names in (
            ("missing", expected.keys() - found.keys()),
            ("unexpected", found.keys() - expected.keys()),
        )
        if names
    ]
    misshapen = [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if misshapen:
        problems.append((f"{len(misshapen)} misshapen", "; ".join(misshapen[:3])))
    if problems:
        listed = "; ".join(f"{count}: {names}" for count, names in problems)
        raise UserError(f"{path} does not fit the configuration beside it ({listed}). Check that both are of one model.")


def _local_part(parameter: Tensor, tensor_slice) -> Tensor:
    """The rows of a file's tensor that this rank's shard of `parameter` holds, still memory-mapped."""
    if not isinstance(parameter, DTensor):
        return tensor_slice[...]
    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
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
    parameters = dict(model.named_parameters())
    names = public_names(parameters)
    with open_weights(path) as file:
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys() if key not in TABLES}  # noqa: SIM118
        check_keys({key: tuple(parameters[name].shape) for key, name in names.items()}, found, path)
        for key, name in names.items():
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


def public_tensors(
    model: Bagel, base: Path, gather: Callable[[Tensor], Tensor]
) -> Iterable[tuple[str, Callable[[], Tensor]]]:
    """(key, how to get it) of the whole public layout, tables included, one tensor at a time.

    `gather` turns a parameter into a full CPU tensor (an all-gather when it is sharded). Keys follow the base file's order.
    """
    parameters = dict(model.named_parameters())
    names = public_names(parameters)
    tables = dict(zip(TABLES, (model.latent_pos_embed, model.vit_pos_embed), strict=True))
    with open_weights(base) as file:
        for key in sorted({*names, *(key for key in file.keys() if key in TABLES)}):  # noqa: SIM118
            if key in tables:
                yield key, lambda key=key: tables[key].cpu()
            else:
                yield key, lambda key=key: gather(parameters[names[key]].detach())
