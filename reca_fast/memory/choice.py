"""Which results each block keeps: the rules behind `memory.recompute` selective and budget."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from .block_cost import BlockCost, Product
from .keeping import Name

GIB = 2**30


@dataclass(frozen=True)
class Choice:
    """What the blocks of a model keep, the first block first."""

    kept: tuple[frozenset[Name] | None, ...]  # of each block; None: everything, so that nothing is computed again
    bytes: int  # of all that is kept, the blocks' inputs included
    flops: int  # of the products that are computed again

    def says(self, cost: BlockCost) -> str:
        """The choice in one line."""
        count, whole = len(self.kept), sum(kept is None for kept in self.kept)
        numbers = [sum(kept is not None and x.name in kept for kept in self.kept) for x in cost.products]
        parts = [f"everything in {whole} of {count} blocks"] if whole else []
        for number, group in groupby(zip(numbers, cost.products, strict=True), key=lambda pair: pair[0]):
            if number:
                parts.append(f"{', '.join(dict.fromkeys(x.label for _, x in group))} in {number} of {count} blocks")
        keeps = "; ".join(parts) or f"the inputs of {count} blocks alone"
        return f"recompute: keeps {keeps}: {self.bytes / GIB:.2f} GiB; computes {self.flops / 1e12:.3g} TFLOP again"


Rule = Callable[[BlockCost, int], Choice]
"""What one block costs, and the number of blocks -> what each of them keeps."""


def keep_narrow(cost: BlockCost, blocks: int) -> Choice:
    """Every product whose result takes no more memory than the block's own, in every block: attention and its
    projections, but not an MLP's wide inner rows.
    """
    chosen = [x for x in cost.products if x.bytes <= cost.rows]
    return _choice(cost, [chosen] * blocks, whole=0)


def keep_within(budget: int, *, whole_blocks: bool = True) -> Rule:
    """The rule that keeps what saves the most arithmetic for its bytes, until `budget` bytes are used.

    Products come first, those with the most FLOPs per byte of their result before the others. When all of them are
    kept, whole blocks follow, in which nothing is computed again. The last blocks come first: what they keep is used
    first, so that it is there for the shortest time.

    Args:
        whole_blocks: False where every block has to run again, because its weights are elsewhere between the passes.
    """

    def rule(cost: BlockCost, blocks: int) -> Choice:
        left = budget - blocks * cost.rows
        chosen: list[list[Product]] = [[] for _ in range(blocks)]
        for product in sorted(cost.products, key=lambda x: -x.flops / max(x.bytes, 1)):
            number = min(blocks, max(left, 0) // max(product.bytes, 1))
            left -= number * product.bytes
            for keeps in chosen[blocks - number :]:
                keeps.append(product)
        rest = cost.everything - sum(x.bytes for x in cost.products)
        complete = sum(len(keeps) == len(cost.products) for keeps in chosen)
        whole = min(complete, max(left, 0) // max(rest, 1)) if whole_blocks else 0
        return _choice(cost, chosen, whole)

    return rule


def _choice(cost: BlockCost, chosen: list[list[Product]], whole: int) -> Choice:
    """With `chosen` products kept in each block, and everything in the last `whole` blocks."""
    first_whole = len(chosen) - whole
    size = len(chosen) * cost.rows + whole * cost.everything
    size += sum(x.bytes for keeps in chosen[:first_whole] for x in keeps)
    again = sum(x.flops for keeps in chosen[:first_whole] for x in cost.products if x not in keeps)
    kept = [frozenset(x.name for x in keeps) for keeps in chosen[:first_whole]]
    return Choice((*kept, *[None] * whole), size, again)
