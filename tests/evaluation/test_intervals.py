"""Intervals hold the truth about 95 times in a hundred, and are those of the textbooks."""

import math

import numpy as np
import pytest
from scipy import stats

from reca_fast.evaluation.intervals import Estimate, mean, mean_of_shares, share


@pytest.mark.parametrize(("passed", "count"), [(0, 200), (200, 200), (1, 7), (93, 200)])
def test_a_share_has_wilsons_interval(passed, count):
    expected = stats.binomtest(passed, count).proportion_ci(method="wilson")
    found = share(passed, count)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.value == passed / count and found.count == count
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_a_mean_has_the_normal_interval():
    values = np.random.default_rng(0).normal(20, 3, 400)
    found = mean(values.tolist())
    expected = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected) and found.value == pytest.approx(values.mean())
    assert mean([4.0]) == Estimate(4.0, 4.0, 4.0, 1)


def test_the_interval_of_a_mean_of_shares_holds_the_truth():
    truth, random = np.array([0.05, 0.2, 0.5, 0.6, 0.9, 0.3]), np.random.default_rng(0)
    drawn = random.binomial(200, truth, (1000, 6))
    estimates = [mean_of_shares([share(int(k), 200) for k in row]) for row in drawn]
    held = sum(e.low <= truth.mean() <= e.high for e in estimates)
    assert 930 <= held <= 970
    assert estimates[0].value == pytest.approx(drawn[0].mean() / 200) and estimates[0].count == 1200


def test_nothing_has_no_score():
    for empty in (lambda: share(0, 0), lambda: mean([]), lambda: mean_of_shares([]), lambda: share(3, 2)):
        with pytest.raises(ValueError):
            empty()
    assert math.isclose(mean_of_shares([share(0, 5)]).value, 0)
