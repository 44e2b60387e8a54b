"""The learning rate of every step."""

import pytest

from reca_fast.config import OptimConfig
from reca_fast.optim import learning_rate


def test_it_warms_up_then_stays():
    config = OptimConfig(lr=2.0, warmup_steps=4)
    assert [learning_rate(config, step, 100) for step in (0, 1, 4, 99)] == [0, 0.5, 2.0, 2.0]


@pytest.mark.parametrize(("floor", "half_way", "end"), [(0.1, 1.1, 0.2), (0.0, 1.0, 0.0), (1.0, 2.0, 2.0)])
def test_the_cosine_falls_to_its_floor(floor, half_way, end):
    config = OptimConfig(lr=2.0, warmup_steps=4, schedule="cosine", min_lr_ratio=floor)
    assert learning_rate(config, 4, 105) == 2.0
    assert learning_rate(config, 54, 105) == pytest.approx(half_way)
    assert learning_rate(config, 104, 105) == pytest.approx(end)
    assert learning_rate(config, 500, 105) == pytest.approx(end)  # a run that was made longer


def test_the_floor_is_a_tenth_unless_told():
    assert learning_rate(OptimConfig(lr=1.0, warmup_steps=0, schedule="cosine"), 9, 10) == pytest.approx(0.1)
