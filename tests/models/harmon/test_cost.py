"""What a step executes at the real size, counted on tensors without numbers, against what the authors' executes."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from reca_fast.config import DataConfig, ModelConfig, ResizeConfig, RunConfig
from reca_fast.kernels import assume_gpu
from reca_fast.models.files import uniform
from reca_fast.models.harmon import HarmonModel
from reca_fast.plan.typical import typical_batch
from reca_fast.plan.work import WorkLog
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import I2T, RECA, Sample, Text

AUTHORS = 28.69
"""TFLOP of an image in the authors' step, everything recomputed."""
SQUARE = ResizeConfig(max_size=512, stride=16, fit="squash")
RUN = RunConfig(
    data=DataConfig(condition_resize=SQUARE, target_resize=SQUARE),
    model=ModelConfig(freeze_und=False),
)


@pytest.mark.slow
def test_an_image_of_the_large_one_takes_at_most_20_5_tflop() -> None:
    """The step that `reca-fast plan` counts, without its optimizer, which multiplies no matrices."""
    model = HarmonModel.published("Harmon-1.5B", RUN.model)
    assert model is not None
    inputs, picture = model.inputs(RUN.data), torch.zeros(512, 512, 3, dtype=torch.uint8)
    samples = [Sample(str(i), (RECA,), None, picture, Text(tuple(range(21)))) for i in range(2)]
    batch: Any = typical_batch(partial(inputs.collate, samples), model.flops, 0)
    with FakeTensorMode(allow_non_fake_inputs=True), assume_gpu():
        model.fill_empty(uniform(torch.float32, "cpu"))
        encoded = replace(batch, latents=torch.zeros(2048, 16), pictures=())
        with WorkLog(lambda tensor: False) as log:
            torch.stack(list(model.loss_sums(encoded).values())).sum().backward()
    assert 19 < log.work.flops / 2 / 1e12 <= 20.5 < 0.72 * AUTHORS
    assert log.work.flops == pytest.approx(model.flops(batch), rel=0.02)


def test_saying_costs_less_than_drawing() -> None:
    model = HarmonModel.published("Harmon-0.5B", RUN.model)
    assert model is not None
    inputs, picture = model.inputs(RUN.data), torch.zeros(512, 512, 3, dtype=torch.uint8)
    said = Sample("0", (I2T,), picture, None, Text(tuple(range(40)), ((20, 40),)))
    drawn = Sample("1", (RECA,), None, picture, None)
    first, second = (model.flops(inputs.collate([sample], draw_of_pack(0, 0, 0))) for sample in (said, drawn))
    assert 0 < first < 0.75 * second
