"""Where and in which dtype the trainer keeps each weight."""

import torch
from torch import Tensor

from reca_fast.models.files import Place, Placement


def training_place(precision: torch.dtype, device: torch.device | str) -> Place:
    """The place that training gives to weights: all on one device, trained ones in fp32, frozen ones as they compute.

    The optimizer updates fp32 weights, because an update is often smaller than what bf16 can tell apart; autocast or
    FSDP makes the narrow copies that a step computes with. A frozen weight needs no such master copy.

    Args:
        precision: dtype of the arithmetic, fp32 or bf16.
        device: of this process.

    Returns:
        A function for `reca_fast.models.files.fill`, which asks it for each tensor.
    """

    def place(name: str, tensor: Tensor) -> Placement:
        return Placement(torch.float32 if tensor.requires_grad else precision, device)

    return place
