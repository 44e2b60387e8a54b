"""Drawings inside pages: every mark is where its number says."""

import re

import pytest

from reca_fast.evaluation.intervals import Estimate
from reca_fast.proof.drawings import STEPS_SMOOTHED, interval_bars, loss_chart, score_chart, smoothed

LOW, HIGH = Estimate(0.25, 0.1, 0.4, 40), Estimate(0.75, 0.6, 0.9, 40)


def test_bars_are_as_long_as_their_values() -> None:
    drawn = interval_bars(LOW, HIGH, width=200)
    assert re.findall(r'<rect class="(\w+)"[^>]* width="([\d.]+)"', drawn) == [("before", "50.0"), ("after", "150.0")]
    assert re.findall(r'class="whisker" x1="([\d.]+)" x2="([\d.]+)"', drawn) == [("20.0", "80.0"), ("120.0", "180.0")]


def test_a_chart_has_a_line_for_each_score_and_escapes_its_name() -> None:
    drawn = score_chart({"a < b": (LOW, HIGH), "other": (HIGH, LOW)})
    assert "a &lt; b" in drawn and "<b" not in drawn
    before = [float(x) for x in re.findall(r'class="ring" cx="([\d.]+)"', drawn)]
    after = [float(x) for x in re.findall(r'class="after" cx="([\d.]+)"', drawn)]
    assert before == after[::-1] and before[0] < after[0]


@pytest.mark.parametrize("losses", [[0.5], [0.5, 0.5], [1e-7, 3e-7, 2e-7], [900.0] + [3.0] * 99, [-1.0, 1.0]])
def test_a_curve_stays_inside_its_frame(losses) -> None:
    drawn = loss_chart(list(enumerate(losses, start=1)), width=640, height=260)
    points = [
        tuple(map(float, point.split(","))) for line in re.findall('points="([^"]+)"', drawn) for point in line.split()
    ]
    assert len(points) == 2 * len(losses)
    assert all(56 <= x <= 624 and 10 <= y <= 226 for x, y in points)


def test_smoothing_is_a_mean_that_forgets() -> None:
    assert smoothed([4.0, 2.0]) == [4.0, 3.0]
    steady = smoothed([10.0] + [1.0] * 20 * STEPS_SMOOTHED)
    assert steady[1] == 5.5 and 1 <= steady[-1] < 1 + 1e-6
