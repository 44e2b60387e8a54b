"""How sure a score is: 95 % intervals of shares and of means."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.959963984540054
"""So many standard deviations on either side hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A score, and the interval that holds the true one with 95 % confidence."""

    value: float
    low: float
    high: float
    count: int
    """Of how many pictures."""


def share(passed: int, count: int) -> Estimate:
    """The share of `count` pictures that passed, with Wilson's interval: it stays within 0 and 1, and it is honest at
    the ends, where none or all passed.

    Raises:
        ValueError: there is no picture.
    """
    if not 0 <= passed <= count or not count:
        raise ValueError(f"{passed} of {count} is no share")
    value = passed / count
    middle = (value + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * math.sqrt(value * (1 - value) / count + (Z / (2 * count)) ** 2)
    return Estimate(value, min(value, max(0.0, middle - half)), max(value, min(1.0, middle + half)), count)


def mean(values: Sequence[float]) -> Estimate:
    """The mean of a score of each picture, with the interval of the normal approximation; of one picture, it has no
    width, as one value tells nothing of the spread.

    Raises:
        ValueError: there is no picture.
    """
    count = len(values)
    if not count:
        raise ValueError("there is no mean of no values")
    value = math.fsum(values) / count
    variance = math.fsum((each - value) ** 2 for each in values) / max(count - 1, 1)
    half = Z * math.sqrt(variance / count)
    return Estimate(value, value - half, value + half, count)


def mean_of_shares(shares: Sequence[Estimate]) -> Estimate:
    """The mean of several shares, each counting alike however many pictures it is of, with the interval of the normal
    approximation from their variances; kept within 0 and 1.

    Raises:
        ValueError: there is no share.
    """
    if not shares:
        raise ValueError("there is no mean of no shares")
    value = math.fsum(each.value for each in shares) / len(shares)
    variance = math.fsum(each.value * (1 - each.value) / each.count for each in shares) / len(shares) ** 2
    half = Z * math.sqrt(variance)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), sum(each.count for each in shares))
