"""Whether an ordering shows: the rule, written down before any run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reca_fast.evaluation.intervals import Estimate, Z

HOLDS, FAILS, NOISE = "holds", "does not hold", "within noise"
ERRORS = 3.0
"""So many standard errors a difference has to exceed."""
RULE = (
    "Of two arms A and B, a claim says that A is ahead. D is the mean of A's seeds less that of B's, the other way "
    "round for a loss. The variance of an arm is that of its seeds, or the binomial variance of one seed's prompts "
    "where that is larger, for few seeds may agree by chance. E is the standard error of D that follows from both. "
    f"Where D is above {ERRORS:g} E, the claim holds; where D is below -{ERRORS:g} E, it does not hold; in between it "
    "is within noise. No verdict is given of fewer than two seeds."
)
"""The rule in words, as pages tell it."""


@dataclass(frozen=True)
class Verdict:
    """What the rule says of one claim."""

    word: str
    difference: float  # A's mean less B's, in the direction that the claim states
    noise: float  # what it has to exceed


def judge(a: Sequence[Estimate], b: Sequence[Estimate], *, lower_is_better: bool = False) -> Verdict | None:
    """The verdict on the claim that A is ahead of B.

    Args:
        a: the score of each of A's seeds.
        b: of B's.
        lower_is_better: whether the smaller score is ahead, as with a loss.

    Returns:
        None where an arm has fewer than two seeds.
    """
    if min(len(a), len(b)) < 2:
        return None
    difference = mean(a) - mean(b)
    difference = -difference if lower_is_better else difference
    noise = ERRORS * math.sqrt(_variance(a) / len(a) + _variance(b) / len(b))
    word = HOLDS if difference > noise else FAILS if difference < -noise else NOISE
    return Verdict(word, difference, noise)


def mean(scores: Sequence[Estimate]) -> float:
    """The mean over seeds."""
    return math.fsum(score.value for score in scores) / len(scores)


def spread(scores: Sequence[Estimate]) -> float:
    """The standard deviation over seeds (of a sample); 0 of one seed."""
    middle = mean(scores)
    return math.sqrt(math.fsum((score.value - middle) ** 2 for score in scores) / max(len(scores) - 1, 1))


def _variance(scores: Sequence[Estimate]) -> float:
    within = math.fsum(((score.high - score.low) / (2 * Z)) ** 2 for score in scores) / len(scores)
    return max(spread(scores) ** 2, within)
