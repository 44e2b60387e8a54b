"""What `make test` leaves to `make test-all` is a combination, never a value or a pair."""

from itertools import combinations, product

import pytest

from tests.combinations import covering, sampled


@pytest.mark.parametrize(("together", "most"), [(1, 5), (2, 20), (4, 120)])
def test_every_part_occurs_in_few_cases(together: int, most: int) -> None:
    cases = list(product(range(2), range(5), range(3), range(4)))
    chosen = covering(cases, together)
    assert chosen <= set(cases) and len(chosen) <= most + 3 * (together == 2)
    for axes in combinations(range(4), together):
        assert {tuple(c[a] for a in axes) for c in chosen} == {tuple(c[a] for a in axes) for c in cases}


def test_the_rest_is_marked() -> None:
    mark = sampled(1, x=[1, 2, 3], y={"small": 0.5, "large": 2.0}).mark
    names, parameters = mark.args
    assert names == ["x", "y"] and [p.id for p in parameters] == [f"{x}-{y}" for x in "123" for y in ("small", "large")]
    assert sum(not p.marks for p in parameters) == 3
    assert parameters[1].values == (1, 2.0)
