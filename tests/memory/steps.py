"""One step of the tiny BAGEL under levers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from reca_fast.config import DataConfig, LoraConfig, MemoryConfig, ModelConfig
from reca_fast.memory import apply_levers, fill_model
from reca_fast.models import Model, open_model
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import I2T, RECA, Sample, Text


def levered(
    folder: Path,
    levers: MemoryConfig,
    mesh: DeviceMesh | None = None,
    say: Callable[[str], None] = lambda line: None,
    lora: LoraConfig | None = None,
    **options: Any,
) -> Model:
    """The tiny model with levers pulled and weights filled, in fp32 unless a precision is given."""
    torch._dynamo.reset()
    model = open_model(ModelConfig(str(folder), **{"precision": "fp32", **options}))
    # The real compiler needs a C++ compiler and minutes; this one differentiates the same graphs.
    parts = (model.module, model.blocks(), levers, lora)
    apply_levers(*parts, mesh=mesh, compute_dtype=model.dtype, compiler="aot_eager", say=say)
    fill_model(model, torch.device("cpu"), levers)
    with torch.no_grad():  # the tiny head of zeros would hide everything behind it
        frozen = model.module.get_parameter(
            "llm2vae.weight"
        )  # where it is, it lies in the file: nobody can write there
        head = nn.Parameter(frozen.clone(), requires_grad=frozen.requires_grad)
        model.module.get_submodule("llm2vae").weight = head
        for row, part in enumerate(head.chunk(head.shape[0])):
            part.fill_(0.02 * (row % 5 - 2))
    return model


def batch_of(model: Model) -> Any:
    """Two samples of RECA; where the understanding side is trained, the second has a caption to learn."""
    draw = torch.Generator().manual_seed(0)
    pictures = [torch.randint(0, 256, (size, size, 3), generator=draw, dtype=torch.uint8) for size in (56, 64)]
    joint = all(p.requires_grad for p in model.module.parameters())
    samples = [
        Sample(
            str(i),
            (task,),
            pictures[0],
            None if task == I2T else pictures[1],
            Text((5, 6, 7), ((0, 3),) if task == I2T else ()),
        )
        for i, task in enumerate((RECA, I2T) if joint else (RECA, RECA))
    ]
    return model.inputs(DataConfig()).collate(samples, draw_of_pack(1, 0, 0))


def gradients(
    folder: Path,
    levers: MemoryConfig,
    mesh: DeviceMesh | None = None,
    *,
    prepare: Callable[[Model], object] = lambda model: None,
    **options: Any,
) -> tuple[float, dict[str, Tensor]]:
    """The loss, and the gradient of every trained parameter by name.

    Args:
        prepare: is given the filled model before the step.
    """
    model = levered(folder, levers, mesh, **options)
    prepare(model)
    loss = torch.stack(list(model.loss_sums(model.encode(batch_of(model))).values())).sum()
    loss.backward()
    found = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
    return loss.item(), {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in found.items()}
