"""Memory: where each kind of number is kept while a model trains, and what is computed twice instead of being kept.

`memory/` pulls these levers. What excludes what stands in docs/memory.md and is refused by `config/rules.py`.
"""

from dataclasses import dataclass
from typing import Literal

from .declare import neutral, rounding

Recompute = Literal["none", "blocks"]


@dataclass
class MemoryConfig:
    """Levers that trade time for memory, or the other way round."""

    recompute: Recompute = neutral("none")
    """What the backward pass computes again instead of keeping it. none: nothing; blocks: every layer, of which only
    the inputs are kept: far less memory, a quarter more work.
    """
    compile: bool = rounding(False)
    """Compile every decoder layer with torch.compile (fullgraph, dynamic shapes)."""
