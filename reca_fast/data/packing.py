"""Which samples share a pack, so that packs are full. The same samples in the same order always give the same packs."""

from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Anything that has a number of tokens."""

    @property
    def num_tokens(self) -> int: ...


S = TypeVar("S", bound=Sized)


def best_fit(sizes: Sequence[int], budget: int) -> list[int]:
    """Which items go into the next pack: the first one, then again and again the largest one that still fits.

    Args:
        sizes: tokens of each item, the one that has waited longest first.
        budget: tokens of a pack.

    Returns:
        The indices of the chosen items, ascending.

    Raises:
        ValueError: the first item alone exceeds the budget.
    """
    if sizes[0] > budget:
        raise ValueError(f"an item of {sizes[0]} tokens cannot fit a pack of {budget}")
    chosen, room = [0], budget - sizes[0]
    for index in sorted(range(1, len(sizes)), key=lambda i: (-sizes[i], i)):
        if sizes[index] <= room:
            chosen.append(index)
            room -= sizes[index]
    return sorted(chosen)


class Packer(Generic[S]):
    """Takes items from a stream into a buffer and makes packs of them.

    The item that has waited longest always goes into the next pack, so none waits for ever. `waiting`, the buffer, is
    all the state there is.

    Args:
        budget: tokens of a pack.
        lookahead: number of items that the buffer holds.
        waiting: items in the buffer at the start.
    """

    def __init__(self, budget: int, lookahead: int, waiting: Sequence[S] = ()) -> None:
        self._budget, self._lookahead = budget, max(1, lookahead)
        self.waiting = list(waiting)

    def next_pack(self, stream: Iterator[S]) -> list[S]:
        """The items of the next pack, in the order in which they came; none when buffer and stream are empty."""
        while len(self.waiting) < self._lookahead and (item := next(stream, None)) is not None:
            self.waiting.append(item)
        if not self.waiting:
            return []
        chosen = set(best_fit([item.num_tokens for item in self.waiting], self._budget))
        pack = [item for i, item in enumerate(self.waiting) if i in chosen]
        self.waiting = [item for i, item in enumerate(self.waiting) if i not in chosen]
        return pack
