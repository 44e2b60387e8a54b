"""Pictures that are drawn at once: one forward pass for several, as `SamplingConfig.together` allows."""

from collections.abc import Callable, Hashable, Sequence

from torch import Tensor


def draw_together(
    kinds: Sequence[Hashable], together: int, draw: Callable[[list[int]], Sequence[Tensor]]
) -> list[Tensor]:
    """Draw pictures in groups of one kind, and give them in the order in which they were asked for.

    Args:
        kinds: of each picture, what those of a group must have in common: their size, say.
        together: how many pictures a group has at most.
        draw: draws the pictures of these numbers, which are of one kind, and gives them in the same order.
    """
    same: dict[Hashable, list[int]] = {}
    for number, kind in enumerate(kinds):
        same.setdefault(kind, []).append(number)
    drawn: dict[int, Tensor] = {}
    for numbers in same.values():
        for start in range(0, len(numbers), together):
            group = numbers[start : start + together]
            drawn |= zip(group, draw(group), strict=True)
    return [drawn[number] for number in range(len(kinds))]
