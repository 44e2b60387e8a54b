"""Giving a module its weights from a file: every tensor accounted for by name and shape, and put where it shall be.

No more than one tensor is held in memory beside the module. Files are memory-mapped: tensors are views of the page
cache, which all processes of a machine share, and each is copied to its device (or, of a sharded module, this rank's
rows of it) on its own. So the memory of the host stays near the file's size, however many ranks read it.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from reca_fast.errors import UserError

from .names import SAME_NAMES, NameTable
from .weights import Weights, refuse_dtype
from .wrapped import Held, PackedWeight, plain_tensors

Shapes = Mapping[str, tuple[int, ...]]
ORIGIN = "the checkpoint that the training began with"


class Placement(NamedTuple):
    """Where and how one tensor of a module is kept."""

    dtype: torch.dtype | None  # None: that of the file
    device: torch.device | str


Place = Callable[[str, Tensor], Placement]
"""Decides the placement of a tensor, from its name in the module and the (still empty) tensor itself."""


def uniform(dtype: torch.dtype, device: torch.device | str) -> Place:
    """The place that gives every tensor one dtype and one device."""
    return lambda name, tensor: Placement(dtype, device)


def fill(module: nn.Module, weights: Weights, place: Place, names: NameTable = SAME_NAMES) -> None:
    """Give a module, built on the meta device, its weights.

    Parameters and persistent buffers are filled; buffers that no checkpoint has are the module's own business.
    Parameters keep their `requires_grad`. A parameter that FSDP2 has sharded gets this rank's part of the tensor. A
    parameter that two names share is filled once, from whichever of its keys the file has, and stays shared. Layers
    that memory levers have changed are filled as `wrapped.py` says.

    Frozen weights that stay on the CPU in the dtype of the file remain views of the file; trained ones are always
    copies, so that an update never writes to the file.

    Args:
        module: on the meta device; filled in place.
        weights: from `open_weights`.
        place: dtype and device of each tensor.
        names: what the file calls the module's tensors.

    Raises:
        UserError: a tensor of the module is missing in the file, has another shape there, or the file holds one that
            the module does not know. The module is unchanged then.
    """
    named = _named(module)
    for key, name in check_fit(weights, (module, names)).items():
        empty = named[name][0].tensor
        local = _read(weights, key, empty, *place(name, empty))
        if isinstance(empty, DTensor):
            local = DTensor.from_local(
                local,
                empty.device_mesh,
                empty.placements,
                run_check=False,
                shape=empty.shape,
                stride=empty.stride(),
            )
        full = nn.Parameter(local, requires_grad=empty.requires_grad) if isinstance(empty, nn.Parameter) else local
        for held in named[name]:
            if isinstance(held.owner, PackedWeight) and held.leaf == held.owner.WEIGHT:
                held.owner.pack(full)
            else:
                setattr(held.owner, held.leaf, full)


def check_fit(weights: Weights, *parts: tuple[nn.Module, NameTable], origin: str = ORIGIN) -> dict[str, str]:
    """Check that a file holds all tensors of these modules, in their shapes, and no other that is meant for them.

    Args:
        parts: modules that one file fills, each with its table of names.
        origin: the checkpoint to take missing tensors from, for the sentence about a file without them.

    Returns:
        Key in the file -> name in its module, of every tensor that `fill` will read.

    Raises:
        UserError: naming the first three tensors of each kind of fault.
    """
    expected: dict[str, tuple[int, ...]] = {}
    read: dict[str, str] = {}
    spare: set[str] = set()
    for module, names in parts:
        for name, held in _named(module).items():
            keys = [names.key(each.name) for each in held]
            chosen = next((key for key in keys if key in weights.shapes), keys[0])
            expected[chosen] = names.stored_shape(name, held[0].tensor.shape)
            read[chosen] = name
            spare.update(keys)
    found = {
        key: shape
        for key, shape in weights.shapes.items()
        if key in expected or (key not in spare and any(names.has(key) for _, names in parts))
    }
    _compare(weights.path, expected, found, origin)
    for key in read:
        if not weights.dtype(key).is_floating_point:
            raise refuse_dtype(weights.path, key, str(weights.dtype(key)).removeprefix("torch."))
    return read


def _named(module: nn.Module) -> dict[str, list[Held]]:
    """Name of a tensor -> every place where the module holds it, under this name first."""
    by_identity: dict[int, list[Held]] = {}
    for held in plain_tensors(module):
        by_identity.setdefault(id(held.tensor), []).append(held)
    return {held[0].name: held for held in by_identity.values()}


def _read(weights: Weights, key: str, empty: Tensor, dtype: torch.dtype | None, device: torch.device | str) -> Tensor:
    """The tensor, or this rank's part of it, in its dtype and on its device."""
    region: tuple[slice, ...] = ()
    shape: tuple[int, ...] = tuple(empty.shape)
    if isinstance(empty, DTensor):
        shape, offset = compute_local_shape_and_global_offset(empty.shape, empty.device_mesh, empty.placements)
        region = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
    part = weights.tensor(key, region)
    # Moved in the file's dtype and cast there: one thread of the host would take minutes for 14 G numbers.
    there = part.to(device)
    cast = there.to(there.dtype if dtype is None else dtype, copy=empty.requires_grad and there is part).contiguous()
    return cast if cast.shape == shape else cast.view(shape)


def _compare(path: Path, expected: Shapes, found: Shapes, origin: str) -> None:
    """Refuse a file whose tensors differ from the expected ones in name or shape."""
    groups = Counter(key.partition(".")[0] for key in expected)
    absent = Counter(key.partition(".")[0] for key in expected.keys() - found.keys())
    left_out = [group for group, count in groups.items() if absent[group] == count > 1]
    if left_out and len(left_out) < len(groups) and found.keys() <= expected.keys():
        raise UserError(
            f"{path} was saved without {' and '.join(f'{group}.*' for group in left_out)} "
            f"({sum(absent[group] for group in left_out)} tensors), as some trainers save what they train; copy these "
            f"tensors into it from {origin}."
        )
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "misshapen": [
            f"{key} {list(found[key])} instead of {list(shape)}"
            for key, shape in sorted(expected.items())
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
            f"{path} does not fit the configuration beside it, tensors: {'; '.join(said)}. "
            "Take both from one checkpoint, or correct its config.json."
        )
