"""Pictures in groups: of one kind, no larger than asked for, and given back in the order of the request."""

import pytest
import torch

from reca_fast.models.together import draw_together


@pytest.mark.parametrize(
    ("together", "groups"),
    [
        (1, [[0], [2], [5], [1], [3], [4]]),
        (2, [[0, 2], [5], [1, 3], [4]]),
        (9, [[0, 2, 5], [1, 3], [4]]),
    ],
)
def test_groups_are_of_one_kind_and_pictures_in_their_order(together, groups) -> None:
    asked: list[list[int]] = []

    def draw(numbers: list[int]) -> list[torch.Tensor]:
        asked.append(numbers)
        return [torch.tensor(number) for number in numbers]

    drawn = draw_together(["a", "b", "a", "b", "c", "a"], together, draw)
    assert [int(each) for each in drawn] == [0, 1, 2, 3, 4, 5]
    assert asked == groups


def test_nothing_is_drawn_where_nothing_is_asked_for() -> None:
    assert draw_together([], 4, lambda numbers: pytest.fail("called")) == []
