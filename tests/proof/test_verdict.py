"""The rule that turns seeds into a word."""

import math

import pytest

from reca_fast.evaluation.intervals import Estimate, share
from reca_fast.proof.verdict import FAILS, HOLDS, NOISE, RULE, judge
from tests.places import ROOT


def exact(*values: float) -> list[Estimate]:
    """Scores without an interval of their own, as losses are."""
    return [Estimate(value, value, value, 1) for value in values]


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        ((0.50, 0.52, 0.48), (0.30, 0.32, 0.28), HOLDS),
        ((0.30, 0.32, 0.28), (0.50, 0.52, 0.48), FAILS),
        ((0.50, 0.52, 0.48), (0.45, 0.47, 0.43), NOISE),  # 0.05, and three standard errors are 0.049: see below
        ((0.5, 0.5), (0.5, 0.5), NOISE),
    ],
)
def test_a_difference_has_to_exceed_three_standard_errors(a, b, word) -> None:
    verdict = judge(exact(*a), exact(*b))
    assert verdict.word == word or math.isclose(verdict.difference, verdict.noise, rel_tol=0.03)


def test_the_noise_is_that_of_the_seeds() -> None:
    """Deviations of 0.02 each of three seeds: 3 sqrt(2 x 0.0004 / 3)."""
    verdict = judge(exact(0.5, 0.52, 0.48), exact(0.3, 0.32, 0.28))
    assert verdict.noise == pytest.approx(3 * math.sqrt(2 * 0.0004 / 3)) and verdict.difference == pytest.approx(0.2)


def test_seeds_that_agree_by_chance_have_the_noise_of_their_prompts() -> None:
    """Half of 200 prompts, in each of three seeds: the binomial deviation is 0.035, which Wilson's interval tells."""
    same = [share(100, 200)] * 3
    assert judge(same, [share(88, 200)] * 3).word == NOISE
    assert judge(same, [share(80, 200)] * 3).word == HOLDS
    assert judge(same, same).noise == pytest.approx(3 * math.sqrt(2 * 0.25 / 200 / 3), rel=0.02)


def test_of_losses_the_smaller_is_ahead() -> None:
    assert judge(exact(0.1, 0.11), exact(0.9, 0.91), lower_is_better=True).word == HOLDS
    assert judge(exact(0.9, 0.91), exact(0.1, 0.11), lower_is_better=True).word == FAILS


def test_one_seed_is_no_ground_for_a_verdict() -> None:
    assert judge(exact(0.9), exact(0.1, 0.1)) is None


def test_the_page_has_the_rule_word_for_word() -> None:
    page = " ".join((ROOT / "docs" / "toy.md").read_text().replace("\n> ", " ").replace("**", "").split())
    assert RULE.partition(" No verdict")[0] in page
