"""Ways of models whose benchmark is a parity case of random numbers: config.json, inputs and weights in a folder."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .way import LR, Step, Work, clip_and_step

SEED = 7
WEIGHTS = "weights.safetensors"


def write_case(
    folder: Path, config: dict[str, Any], inputs: dict[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Write a case of random weights.

    Args:
        shapes: of the public checkpoint's tensors, by name.
    """
    draw, weights = torch.Generator().manual_seed(SEED), {}
    for name, shape in shapes.items():
        scale = max(math.prod(shape[1:]), 16) ** -0.5 if len(shape) > 1 else 0.05
        weights[name] = torch.randn(*shape, generator=draw) * scale + (len(shape) == 1 and name.endswith("weight"))
    save_file(weights, folder / WEIGHTS)
    save_file(inputs, folder / "inputs.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def authors_step(
    work: Work, build: Callable[[dict[str, Any]], Any], loss_of: Callable[[Any, dict[str, Tensor]], Tensor]
) -> Step:
    """A step of an eager model: fp32 weights, autocast where the arithmetic is bf16, AdamW over a list of tensors.

    Args:
        build: the model of a configuration; it has `load(weights)`.
        loss_of: its loss on the inputs of the case.
    """
    model = build(json.loads((work.folder / "config.json").read_text()))
    model.load(load_file(work.folder / WEIGHTS)).to(work.device)
    inputs = {name: tensor.to(work.device) for name, tensor in load_file(work.folder / "inputs.safetensors").items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, eps=1e-8, weight_decay=0.0)

    def step() -> float:
        with torch.device(work.device), torch.autocast(work.device.type, work.dtype, work.precision == "bf16"):
            loss = loss_of(model, inputs)
        loss.backward()
        if work.update:
            clip_and_step(optimizer, trained)
        model.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step
