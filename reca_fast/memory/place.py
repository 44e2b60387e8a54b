"""Where and in which dtype the trainer keeps each weight."""

import torch
from torch import Tensor

from reca_fast.config import DrawingMemory, MemoryConfig
from reca_fast.config.memory import Trained
from reca_fast.models import Model
from reca_fast.models.files import Place, Placement, uniform
from reca_fast.models.parts.host_table import host_tables

from .adapters import fill_adapters
from .host import is_on_host
from .quantize import quantize
from .ring import HostWeights, on_host, swapped, visit


def training_place(precision: torch.dtype, device: torch.device | str, trained: Trained = "fp32") -> Place:
    """The place that training gives to weights: all on one device, frozen ones in the dtype that they compute in,
    trained ones in fp32 or in that dtype too.

    An update is often smaller than what bf16 can tell apart. So trained weights are either fp32, and autocast or FSDP
    makes the narrow copies that a step computes with, or they are bf16 and updates are rounded stochastically. A frozen
    weight needs neither.

    Args:
        precision: dtype of the arithmetic, fp32 or bf16.
        device: of this process.
        trained: `memory.trained`; bf16 means `precision`.

    Returns:
        A function for `reca_fast.models.files.fill`, which asks it for each tensor.
    """
    kept = torch.float32 if trained == "fp32" else precision

    def place(name: str, tensor: Tensor) -> Placement:
        return Placement(kept if tensor.requires_grad else precision, device)

    return place


def fill_to_draw(model: Model, device: torch.device, options: DrawingMemory | None = None) -> None:
    """Give a model and its frozen encoders their weights for drawing alone, on one device. Nothing is wider than the
    arithmetic, and on a CPU whatever the file has in that dtype stays a view of it.

    Raises:
        UserError: a file is missing or damaged, its tensors are not the model's, or bitsandbytes is missing for nf4.
    """
    options = options or DrawingMemory()
    blocks = model.blocks()
    model.module.requires_grad_(False)
    quantize(blocks, options.frozen)
    model.fill(partly_on_host(model, uniform(model.dtype, device), frozen=options.frozen_on == "host"))
    model.fill_encoders(device)
    if options.frozen_on == "host":
        visit(blocks, HostWeights(on_host(blocks, trained=False), device))


def partly_on_host(model: Model, place: Place, *, frozen: bool, swap: float = 0.0) -> Place:
    """`place`, but on the CPU for the weights of blocks that live in host memory, from where they visit the device.

    Args:
        frozen: all frozen weights do.
        swap: share of the blocks whose trained weights do.
    """
    blocks = model.blocks()
    away = swapped(len(blocks), swap)
    prefixes = {id(part): f"{name}." for name, part in model.module.named_modules()}
    homes = {prefixes[id(block)]: number in away for number, block in enumerate(blocks)}

    def placed(name: str, tensor: Tensor) -> Placement:
        for prefix, trained in homes.items():
            if name.startswith(prefix) and (trained if tensor.requires_grad else frozen):
                return place(name, tensor)._replace(device="cpu")
        return place(name, tensor)

    return placed


def place_of(model: Model, device: torch.device, options: MemoryConfig) -> Place:
    """The place that training gives to each weight under `options`: on this device, or in host memory."""
    place = training_place(model.dtype, device, options.trained)
    return partly_on_host(model, place, frozen=options.frozen_on == "host", swap=options.swap)


def fill_model(
    model: Model,
    device: torch.device,
    options: MemoryConfig | None = None,
    *,
    empty: bool = False,
    encoders: bool = True,
    seed: int = 0,
) -> None:
    """Give a model and its frozen encoders their weights, kept as training keeps them, on one device.

    Args:
        options: whose levers were pulled on the model; None for none.
        empty: read no file; the weights hold no particular numbers. For planning.
        encoders: False leaves the encoders without weights: steps from a cache need none.
        seed: of what adapters begin with, where there are some.

    Raises:
        UserError: a file is missing or damaged, or its tensors are not the model's.
    """
    place = place_of(model, device, options or MemoryConfig())
    if empty:
        model.fill_empty(place)
        if not encoders:
            model.drop_encoders()
    else:
        model.fill(place)
        if encoders:
            model.fill_encoders(device)
    fill_adapters(model.module, place, seed)
    for table in host_tables(model.module):
        is_on_host(table)
