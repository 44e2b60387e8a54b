"""This process's part of a tensor that several processes share."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory, or the tensor itself when it is not shared.

    Arithmetic on it costs a tenth of that on a DTensor, whose operations over lists moreover leave objects behind that
    are never freed (torch 2.12 and newer).
    """
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharers(parameter: Tensor) -> list[dist.ProcessGroup]:
    """The processes that hold the parts of a parameter: one group for each dimension of the mesh that shards it, none
    for a parameter that is whole.
    """
    if not isinstance(parameter, DTensor):
        return []
    mesh = parameter.device_mesh
    return [mesh.get_group(at) for at, placement in enumerate(parameter.placements) if placement.is_shard()]


def number_of_part(parameter: Tensor) -> list[int]:
    """Which part of a parameter this process holds: its place in each of the groups of `sharers`."""
    if not isinstance(parameter, DTensor):
        return []
    place = parameter.device_mesh.get_coordinate()
    assert place is not None, "a process of the mesh"
    return [at for at, placement in zip(place, parameter.placements, strict=True) if placement.is_shard()]


New = Callable[[Sequence[int], torch.dtype], Tensor]
"""Makes a tensor of zeros of a shape and a dtype, somewhere: on a device, on the host."""


def share_like(parameter: Tensor, shape: Sequence[int], dtype: torch.dtype, new: New) -> Tensor:
    """Zeros that are shared out over the processes by its first dimension as the parameter is by its.

    Args:
        shape: of the whole tensor. Where the parameter is shared, its first dimension is the parameter's.
        new: makes this process's part. It need not be on the device of the processes' mesh.
    """
    whole = torch.Size(shape)
    if not isinstance(parameter, DTensor):
        return new(whole, dtype)
    own = new((parameter.to_local().shape[0], *whole[1:]), dtype)
    strides = torch.empty(whole, device="meta").stride()
    spec = DTensorSpec(parameter.device_mesh, parameter.placements, tensor_meta=TensorMeta(whole, strides, dtype))
    # DTensor.from_local would move the part to the device of the mesh.
    return DTensor(own, spec, requires_grad=False)
