"""Filling packs to a token budget. Pure: sizes in, indices out; the same input always gives the same packs."""

from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Anything that knows how many tokens it takes."""

    @property
    def num_tokens(self) -> int: ...


S = TypeVar("S", bound=Sized)


def best_fit(sizes: Sequence[int], budget: int) -> list[int]:
    """Indices of the items for the next pack, oldest (index 0) always among them, then whatever is largest and fits.

    Raises ValueError when the oldest item alone exceeds the budget.
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
    """Draws items from a stream into a buffer of `lookahead` and takes packs out of it.

    The oldest item of the buffer always goes into the next pack, so none waits for ever. `waiting` is the whole state.
    """

    def __init__(self, budget: int, lookahead: int, waiting: Sequence[S] = ()) -> None:
        self._budget, self._lookahead = budget, max(1, lookahead)
        self.waiting = list(waiting)

    def next_pack(self, stream: Iterator[S]) -> list[S]:
        """The next pack, at most `budget` tokens, in order of arrival; empty only when buffer and stream are."""
        while len(self.waiting) < self._lookahead and (item := next(stream, None)) is not None:
            self.waiting.append(item)
        if not self.waiting:
            return []
        chosen = set(best_fit([item.num_tokens for item in self.waiting], self._budget))
        pack = [item for i, item in enumerate(self.waiting) if i in chosen]
        self.waiting = [item for i, item in enumerate(self.waiting) if i not in chosen]
        return pack
