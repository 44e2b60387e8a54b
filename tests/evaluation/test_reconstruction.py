"""Pictures drawn again from what the understanding encoder saw of them, and how close they came."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reca_fast.config import ModelConfig, SamplingConfig, TaskWeights
from reca_fast.evaluation.reconstruction import Reconstruction, pick_samples, reconstruct
from reca_fast.memory import fill_model
from reca_fast.sample import I2T, RECA, T2I, Sample, Text
from tests.builders import builder_of
from tests.data.packs import PHOTOS, SMALL, Pictures
from tests.models.toy import ToyModel, write_toy_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("task", [RECA, T2I, I2T])
def test_grids_have_pictures_whatever_is_trained(task: str) -> None:
    config = replace(SMALL, tasks=TaskWeights(**{RECA: 0.0, task: 1.0}))
    source = Pictures([b"not a picture", *PHOTOS.images])
    samples = pick_samples(source, builder_of(config), 3)
    assert [(s.key, s.tasks) for s in samples] == [(source.key(i), (RECA,)) for i in (1, 2, 3)]
    assert all(s.condition is not None and s.target is not None for s in samples)


def test_samples_end_with_the_source() -> None:
    samples = pick_samples(Pictures(PHOTOS.images[:2]), builder_of(SMALL), 5)
    assert [sample.key for sample in samples] == ["000.jpg", "001.jpg"]


def test_each_is_told_beside_its_original(tmp_path: Path) -> None:
    """Sizes, keys and originals are those of the samples; number i is drawn from the noise of seed + i."""
    model = ToyModel.open(ModelConfig(path=str(write_toy_checkpoint(tmp_path / "toy"))))
    fill_model(model, torch.device("cpu"))
    noise = torch.Generator().manual_seed(0)
    shapes = [(16, 24), (32, 8)]
    originals = [torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=noise) for shape in shapes]
    samples = [Sample(f"no. {n}", (RECA,), picture, picture, Text((3, 4))) for n, picture in enumerate(originals)]
    sampling = SamplingConfig(steps=2, seed=7)
    got = reconstruct(model, samples, sampling)
    assert [(r.key, r.original.data_ptr(), r.drawn.shape) for r in got] == [
        (sample.key, picture.data_ptr(), picture.shape) for sample, picture in zip(samples, originals, strict=True)
    ]
    (second,) = reconstruct(model, samples[1:], replace(sampling, seed=8))
    assert torch.equal(second.drawn, got[1].drawn)


def test_an_error_counts_pixels_from_0_to_1() -> None:
    black, white = torch.zeros(2, 3, 3, dtype=torch.uint8), torch.full((2, 3, 3), 255, dtype=torch.uint8)
    assert Reconstruction("x", black, white).mse == 1 and Reconstruction("x", white, white).mse == 0
    grey = torch.full_like(black, 51)
    assert Reconstruction("x", black, grey).mse == pytest.approx(0.04)
