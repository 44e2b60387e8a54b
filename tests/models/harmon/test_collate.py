"""What is drawn for a step, and what a pack counts."""

import math

import pytest
import torch

from reca_fast.config import DataConfig, ModelConfig, ResizeConfig, TaskWeights
from reca_fast.errors import UserError
from reca_fast.models.harmon import HarmonModel
from reca_fast.models.harmon.collate import hidden_share
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import I2T, RECA, T2I, Sample, Text

SQUARE = ResizeConfig(max_size=64, stride=16, fit="squash")
DATA = DataConfig(condition_resize=SQUARE, target_resize=SQUARE)


@pytest.fixture(scope="module")
def published():
    return HarmonModel.published("Harmon-0.5B", ModelConfig(freeze_und=False))


def picture(side: int = 64):
    return torch.zeros(side, side, 3, dtype=torch.uint8)


def test_the_hidden_share_is_a_truncated_normal() -> None:
    """Its median is 0.874, its mean 0.867 and its deviation 0.084."""
    shares = torch.tensor([hidden_share((i + 0.5) / 4000, 0.7) for i in range(4000)])
    assert [shares.median().item(), shares.mean().item(), shares.std().item()] == pytest.approx(
        [0.874, 0.867, 0.084], abs=1e-3
    )
    assert hidden_share(0.0, 0.7) == pytest.approx(0.7) and hidden_share(1.0, 0.7) == 1.0


def test_one_share_for_a_pack_and_an_order_for_each_picture(published) -> None:
    inputs = published.inputs(DATA)
    samples = [Sample(str(i), (RECA,), None, picture(), Text((1, 2))) for i in range(3)]
    shares = set()
    for number in range(20):
        batch = inputs.collate(samples, draw_of_pack(0, 0, number))
        hidden = batch.decoder.tokens.view(3, -1)
        assert hidden.shape[1] >= math.ceil(16 * 0.7)
        assert len({tuple((row % 16).tolist()) for row in hidden}) > 1 or hidden.shape[1] >= 15
        shares.add(hidden.shape[1])
        assert batch.counts == {RECA: 4 * hidden.numel()}
        assert len(batch.timesteps) == 4 * hidden.numel()
    assert len(shares) > 2


def test_timesteps_are_even(published) -> None:
    samples = [Sample(str(i), (RECA,), None, picture(), None) for i in range(40)]
    steps = published.inputs(DATA).collate(samples, draw_of_pack(0, 0, 0)).timesteps.double()
    assert steps.min() >= 0 and steps.max() <= 999 and steps.mean() == pytest.approx(499.5, abs=25)


@pytest.mark.parametrize(
    ("tasks", "sizes"),
    [((RECA,), (None, (64, 64))), ((T2I,), (None, (64, 64))), ((I2T,), ((64, 64), None))],
)
def test_a_picture_that_is_its_own_condition_is_planned_once(tasks, sizes, published) -> None:
    plan = published.inputs(DATA).plan(tasks, (300, 200), Text((1, 2), ((0, 2),) if I2T in tasks else ()))
    assert (plan.condition, plan.target) == sizes


def test_a_condition_of_another_size_or_blurred_is_planned_apart(published) -> None:
    text = Text((1, 2))
    small = ResizeConfig(max_size=32, min_size=32, stride=16)
    apart = published.inputs(DataConfig(condition_resize=small, target_resize=SQUARE)).plan((RECA,), (64, 64), text)
    assert apart[:2] == ((32, 32), (64, 64))
    blurred = published.inputs(DataConfig(condition_resize=SQUARE, target_resize=SQUARE, blur_sigma=2.0))
    assert blurred.plan((RECA,), (64, 64), text)[:2] == ((64, 64), (64, 64))


def test_latents_are_encoded_once_for_both_passes(tiny) -> None:
    model = HarmonModel.open(ModelConfig(path=str(tiny), precision="fp32", freeze_und=False))
    model.fill_encoders(torch.device("cpu"))
    data = DataConfig(condition_resize=ResizeConfig(32, 32, 8), target_resize=ResizeConfig(32, 32, 8))
    sample = Sample("0", (RECA,), None, picture(32), None)
    batch = model.inputs(data).collate([sample], draw_of_pack(0, 0, 0))
    assert len(batch.pictures) == 1 and len(batch.encoder.segments.cu_seqlens_q) == 3
    encoded = model.encode(batch)
    assert encoded.latents.shape == (16, model.config.mar.token_dim) and encoded.pictures == ()


@pytest.mark.parametrize(
    ("data", "options", "sentence"),
    [
        ({"round_rows": 64}, {}, r"data\.round_rows is 64"),
        ({"target_resize": ResizeConfig(64, 64, 8)}, {}, r"data\.target_resize\.stride is 8; .* multiple of 16"),
        ({}, {"freeze_und": True}, r"set --model\.freeze_und false"),
        ({"tasks": TaskWeights(reca=1)}, {"condition": "generation"}, r"set --model\.condition auto"),
    ],
)
def test_what_cannot_be_is_refused_by_name(data, options, sentence) -> None:
    given = {"condition_resize": SQUARE, "target_resize": SQUARE} | data
    with pytest.raises(UserError, match=sentence):
        HarmonModel.published("Harmon-0.5B", ModelConfig(**{"freeze_und": False} | options)).inputs(DataConfig(**given))
