"""Samples of what a test could be run with: `make test` meets every value, or every pair of values; `make test-all`
meets every combination.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import pytest


def sampled(together: int, **axes: Sequence[Any] | Mapping[str, Any]) -> pytest.MarkDecorator:
    """A parametrisation over all combinations of the axes' values, of which those beyond a sample are `exhaustive`.

    Args:
        together: 1 for a sample in which every value occurs, 2 for one in which every pair of values of two axes does.
        axes: for each argument of the test its values, or names of cases and their values.
    """
    named = [list(axis.items() if isinstance(axis, Mapping) else ((str(v), v) for v in axis)) for axis in axes.values()]
    cases = list(product(*(range(len(axis)) for axis in named)))
    chosen = covering(cases, together)
    parameters = [
        pytest.param(
            *(axis[place][1] for axis, place in zip(named, case, strict=True)),
            id="-".join(axis[place][0] for axis, place in zip(named, case, strict=True)),
            marks=[] if case in chosen else pytest.mark.exhaustive,
        )
        for case in cases
    ]
    return pytest.mark.parametrize(list(axes), parameters)


def covering(cases: Sequence[tuple[int, ...]], together: int) -> set[tuple[int, ...]]:
    """Few of the cases: whatever `together` axes hold in one of all cases, they hold in a chosen one."""

    def parts(case: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
        return set(combinations(enumerate(case), together))

    chosen: set[tuple[int, ...]] = set()
    missing = set().union(*map(parts, cases))
    while missing:
        best = max(cases, key=lambda case: len(parts(case) & missing))
        chosen.add(best)
        missing -= parts(best)
    return chosen
