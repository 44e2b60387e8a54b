"""Where and in which dtype the trainer keeps each weight."""

import torch
from torch import Tensor

from reca_fast.models import Model
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


def fill_model(model: Model, device: torch.device) -> None:
    """Give a model and its frozen encoders their weights, kept as training keeps them, on one device.

    Raises:
        UserError: a file is missing or damaged, or its tensors are not the model's.
    """
    model.fill(training_place(model.dtype, device))
    model.fill_encoders(device)
