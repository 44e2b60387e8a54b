"""Whether a run can fit on its GPU at all, and what to do when the GPU's memory runs out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from reca_fast.config import RunConfig
from reca_fast.config.recipes import recipe_for_card
from reca_fast.errors import UserError
from reca_fast.memory import packed_parameters, place_of
from reca_fast.memory.ladder import as_options, rungs
from reca_fast.models import Model

from .state import Run

GIB = 2**30
STATES = {"adamw": 8, "muon": 4, "adamw8bit": 2, "adamw8bit_ao": 2, "adamw4bit_ao": 1}
"""Bytes of a trained weight's optimizer states; other kinds keep next to nothing on the GPU."""


def check_room(config: RunConfig, model: Model, total: int, processes: int = 1) -> None:
    """Refuse a run whose weights, gradients and optimizer states alone are more than the GPU has. Activations come on
    top, so a run that passes may still not fit: `reca-fast plan` tells.

    Args:
        model: on the meta device, its levers pulled.
        total: bytes of the GPU's memory.
        processes: that train together.

    Raises:
        UserError: names the way out.
    """
    parts = least_bytes(config, model, processes)
    if sum(parts.values()) > total:
        raise UserError(
            f"This run cannot fit: {_listed(parts)} take {sum(parts.values()) / GIB:.1f} GiB of each GPU before any "
            f"activation, and it has {total / GIB:.1f}. {_way_out(config, model, total)}"
        )


def least_bytes(config: RunConfig, model: Model, processes: int = 1) -> dict[str, int]:
    """What a run keeps on each GPU whatever its packs are: category -> bytes.

    Args:
        processes: that train together; the replicas among them share nothing.
    """
    place = place_of(model, torch.device("cuda"), config.memory)
    packed = packed_parameters(model.module)
    weights = gradients = states = 0
    for name, parameter in model.module.named_parameters():
        dtype, device = place(name, parameter)
        width = (dtype or parameter.dtype).itemsize
        stays = torch.device(device).type == "cuda"
        weights += stays * (parameter.nbytes if parameter in packed else parameter.numel() * width)
        if parameter.requires_grad:
            gradients += parameter.numel() * width
            states += parameter.numel() * STATES.get(config.optim.kind, 0)
    on_gpu = {
        "weights": weights,
        "gradients": gradients if config.memory.gradients == "device" else 0,
        "optimizer states": states if config.optim.states == "device" else 0,
    }
    shares = processes // config.parallel.replicate if config.memory.order == "pack" else 1
    return {name: size // shares for name, size in on_gpu.items() if size}


@contextmanager
def out_of_memory_is_a_user_error(run: Run) -> Iterator[None]:
    """Inside, a GPU that runs out of memory becomes one sentence: what it held, and which lever comes next.

    Raises:
        UserError: in place of torch.OutOfMemoryError.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        total, peak = torch.cuda.get_device_properties().total_memory, torch.cuda.max_memory_allocated()
        known = least_bytes(run.config, run.model, run.processes.world)
        parts = known | {"activations and workspace": max(0, peak - sum(known.values()))}
        raise UserError(
            f"The GPU's memory ran out in step {run.step + 1}: {_listed(parts)} took {peak / GIB:.1f} GiB at the peak, "
            f"and it has {total / GIB:.1f}. {_way_out(run.config, run.model, total)}"
        ) from None


def _listed(parts: Mapping[str, int]) -> str:
    said = [f"{name} ({size / GIB:.1f} GiB)" for name, size in parts.items()]
    return f"{', '.join(said[:-1])} and {said[-1]}" if said[1:] else said[0]


def _way_out(config: RunConfig, model: Model, total: int) -> str:
    recipes = (recipe_for_card(name, round(total / 1e9)) for name in model.PUBLISHED)
    recipe = next(filter(None, recipes), None)
    lever = next((as_options(levers) for _, levers, _ in rungs(config) if levers), "")
    ways = [f"train with --config {recipe}, which is made for such a card" if recipe else ""]
    ways.append(f"pull the next lever, {lever}" if lever else "lower --data.tokens_per_pack")
    return f"Try this: {', or '.join(filter(None, ways))}. `reca-fast plan --goal fits` finds what fits."
