"""A step with compiled layers: the same loss, and for every single parameter the same gradient."""

import pytest
import torch
from torch import Tensor

from reca_fast.config import DataConfig, MemoryConfig, ModelConfig
from reca_fast.memory import apply_levers, compiled_graphs, fill_model
from reca_fast.models import open_model
from reca_fast.models.bagel.tiny import write_tiny_checkpoint
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import I2T, RECA, Sample, Text

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def step(folder, *, compiled: bool, **options) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, and the gradient of every trained parameter."""
    torch._dynamo.reset()
    levers = MemoryConfig(recompute=options.pop("recompute"), compile=compiled)
    model = open_model(ModelConfig(str(folder), **options))
    # The real compiler needs a C++ compiler and minutes; this one differentiates the same graphs.
    apply_levers(model.module, model.blocks(), levers, compiler="aot_eager")
    fill_model(model, torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    pictures = [torch.randint(0, 256, (size, size, 3), generator=draw, dtype=torch.uint8) for size in (56, 64)]
    joint = not options["freeze_und"]
    tasks = (RECA, I2T) if joint else (RECA, RECA)
    samples = [
        Sample(
            str(i),
            (task,),
            pictures[0],
            None if task == I2T else pictures[1],
            Text((5, 6, 7), ((0, 3),) if task == I2T else ()),
        )
        for i, task in enumerate(tasks)
    ]
    batch = model.inputs(DataConfig()).collate(samples, draw_of_pack(1, 0, 0))
    sums = model.loss_sums(model.encode(batch))
    loss = sum(sums.values())
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("precision", "freeze_und", "recompute"),
    [pytest.param("fp32", False, "none", marks=pytest.mark.exhaustive), ("bf16", True, "blocks")],
    ids=["fp32 joint", "bf16 reca recomputed"],
)
def test_every_gradient_is_that_of_eager(tiny_folder, precision, freeze_und, recompute) -> None:
    options = {"precision": precision, "freeze_und": freeze_und, "recompute": recompute}
    loss, gradients = step(tiny_folder, compiled=False, **options)
    got_loss, got = step(tiny_folder, compiled=True, **options)
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if precision == "fp32" else {"rtol": 0.05, "atol": 1e-4}
    torch.testing.assert_close(got_loss, loss, **tolerance)
    assert got.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert bool(got[name].any()) == bool(gradient.any()), name
        error, size = (got[name] - gradient).norm(), gradient.norm()
        assert error <= (1e-4 if precision == "fp32" else 0.05) * size, name


@pytest.mark.parametrize("joint", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["reca", "joint"])
def test_packs_of_other_sizes_compile_nothing_again(tmp_path, joint) -> None:
    """Two graphs where the understanding side is frozen: the last layer drops its rows. Else one."""
    write_tiny_checkpoint(
        tmp_path / "tiny", hidden_size=64, intermediate_size=96, layers=1 if joint else 2, vit_hidden_size=48
    )
    torch._dynamo.reset()
    levers = MemoryConfig(compile=True)
    model = open_model(ModelConfig(str(tmp_path / "tiny"), precision="fp32", freeze_und=not joint))
    apply_levers(model.module, model.blocks(), levers, compiler="eager")
    fill_model(model, torch.device("cpu"), levers)
    before, graphs, sizes = compiled_graphs(), [], set()
    for number in range(6):
        samples = [
            Sample(
                f"{number}.{i}",
                (task,),
                torch.zeros(28 * (1 + (number + i) % 3), 56, 3, dtype=torch.uint8),
                None if task == I2T else torch.zeros(16 * (3 + number % 2), 16 * (3 + i), 3, dtype=torch.uint8),
                Text(tuple(range(5, 8 + number + i)), ((0, 3 + number + i),) if task == I2T else ()),
            )
            for i, task in enumerate((RECA, I2T if joint else RECA, RECA, RECA)[: 2 + number % 3])
        ]
        batch = model.encode(model.inputs(DataConfig()).collate(samples, draw_of_pack(1, 0, number)))
        torch.stack(list(model.loss_sums(batch).values())).sum().backward()
        graphs.append(compiled_graphs() - before)
        sizes.add((len(batch.und_rows), len(batch.gen_rows), len(samples)))
    assert len(sizes) == 6 and graphs == [1 if joint else 2] * 6
