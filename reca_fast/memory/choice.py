"""Which results each block keeps: the rules behind `memory.recompute` selective and budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from .block_cost import BlockCost, Product
from .keeping import Name

GIB = 2**30


class Kind(NamedTuple):
    """Blocks that are alike."""

    cost: BlockCost  # of one of them
    blocks: tuple[int, ...]  # their numbers


@dataclass(frozen=True)
class Choice:
    """What the blocks of a model keep, the first block first."""

    kept: tuple[frozenset[Name] | None, ...]  # of each block; None: everything, so that nothing is computed again
    bytes: int  # of all that is kept, the blocks' inputs included
    flops: int  # of the products that are computed again

    def says(self, kinds: Sequence[Kind]) -> str:
        """The choice in one line."""
        parts = []
        for cost, blocks in kinds:
            kept, count = [self.kept[number] for number in blocks], len(blocks)
            if whole := sum(each is None for each in kept):
                parts.append(f"everything in {whole} of {count} blocks")
            numbers = [sum(each is not None and x.name in each for each in kept) for x in cost.products]
            for number, group in groupby(zip(numbers, cost.products, strict=True), key=lambda pair: pair[0]):
                if number:
                    labels = ", ".join(dict.fromkeys(x.label for _, x in group))
                    parts.append(f"{labels} in {number} of {count} blocks")
        keeps = "; ".join(parts) or f"the inputs of {len(self.kept)} blocks alone"
        return f"recompute: keeps {keeps}: {self.bytes / GIB:.2f} GiB; computes {self.flops / 1e12:.3g} TFLOP again"


Rule = Callable[[Sequence[Kind]], Choice]
"""The kinds of blocks, in the order in which they run -> what each block keeps."""


def keep_narrow(kinds: Sequence[Kind]) -> Choice:
    """Every product whose result takes no more memory than the block's own, in every block: attention and its
    projections, but not an MLP's wide inner rows.
    """
    narrow = {number: [x for x in cost.products if x.bytes <= cost.rows] for cost, blocks in kinds for number in blocks}
    return _choice(kinds, narrow, whole=set())


def keep_within(budget: int, *, whole_blocks: bool = True) -> Rule:
    """The rule that keeps what saves the most arithmetic for its bytes, until `budget` bytes are used.

    Products come first, those with the most FLOPs per byte of their result before the others. When all of them are
    kept, whole blocks follow, in which nothing is computed again. The last blocks come first: what they keep is used
    first, so that it is there for the shortest time.

    Args:
        whole_blocks: False where every block has to run again, because its weights are elsewhere between the passes.
    """

    def rule(kinds: Sequence[Kind]) -> Choice:
        left = budget - sum(len(blocks) * cost.rows for cost, blocks in kinds)
        chosen: dict[int, list[Product]] = {number: [] for _, blocks in kinds for number in blocks}
        products = [(product, blocks) for cost, blocks in kinds for product in cost.products]
        for product, blocks in sorted(products, key=lambda pair: -pair[0].flops / max(pair[0].bytes, 1)):
            fitting = min(len(blocks), max(left, 0) // max(product.bytes, 1))
            left -= fitting * product.bytes
            for number in blocks[len(blocks) - fitting :]:
                chosen[number].append(product)
        whole: set[int] = set()
        for cost, blocks in reversed(kinds) if whole_blocks else ():
            rest = cost.everything - sum(x.bytes for x in cost.products)
            complete = sum(len(chosen[number]) == len(cost.products) for number in blocks)
            fitting = min(complete, max(left, 0) // max(rest, 1))
            left -= fitting * rest
            whole.update(blocks[len(blocks) - fitting :])
        return _choice(kinds, chosen, whole)

    return rule


def _choice(kinds: Sequence[Kind], chosen: dict[int, list[Product]], whole: set[int]) -> Choice:
    """With `chosen` products kept in each block, and everything in the blocks `whole`."""
    size = again = 0
    kept: dict[int, frozenset[Name] | None] = {}
    for cost, blocks in kinds:
        for number in blocks:
            size += cost.rows + (cost.everything if number in whole else sum(x.bytes for x in chosen[number]))
            again += 0 if number in whole else sum(x.flops for x in cost.products if x not in chosen[number])
            kept[number] = None if number in whole else frozenset(x.name for x in chosen[number])
    return Choice(tuple(kept[number] for number in sorted(kept)), size, again)
