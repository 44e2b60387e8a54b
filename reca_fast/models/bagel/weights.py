"""Reading the public checkpoint layout, strictly and without holding it in memory.

The file is memory-mapped: tensors are views of the page cache, which all processes of a host share, and each one is
copied to its device (or its shard) on its own. Host memory therefore stays near the file's size however many ranks read
it.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from reca_fast.models.safetensors_files import check_layout, open_safetensors, stored_shapes

from .model import Bagel
from .names import TABLES, public_names

WEIGHTS_FILE = "ema.safetensors"


def check_keys(model: Bagel, path: Path) -> None:
    """Refuse a file whose keys or shapes differ from the model's. The two position tables may be there or not."""
    parameters = dict(model.named_parameters())
    expected = {key: tuple(parameters[name].shape) for key, name in public_names(parameters).items()}
    found = {key: shape for key, shape in stored_shapes(path).items() if key not in TABLES}
    check_layout(path, expected, found)


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
