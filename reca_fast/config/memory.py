"""Memory: where each kind of number is kept while a model trains, and what is computed twice instead of being kept.

`memory/` pulls these levers. What excludes what stands in docs/memory.md and is refused by `config/rules.py`.
"""

from dataclasses import dataclass
from typing import Literal

from .declare import fixed, free, neutral, rounding

Trained = Literal["fp32", "bf16"]
Frozen = Literal["compute", "int8", "nf4"]
Recompute = Literal["none", "blocks"]
Matmul = Literal["plain", "fp8", "int8"]


@dataclass
class MemoryConfig:
    """Levers that trade time for memory, or the other way round."""

    trained: Trained = fixed("fp32")
    """Dtype in which trained weights are kept. bf16 saves 2 bytes of a weight, 2 of its gradient and 2 of the copy that
    a step in bf16 computes with; an update is made in fp32 and rounded stochastically, so that small ones count on
    average. Price: noise of half a bf16 digit in every weight. Needs model.precision=bf16.
    """
    frozen: Frozen = fixed("compute")
    """How the frozen linear layers of the blocks are kept. compute: in the dtype of model.precision; int8: in 8 bits
    with a scale for each row, 0.6 % away from the weights; nf4: in 4.5 bits, 9 % away (needs bitsandbytes). Each
    product widens its weight first. Every process holds them whole. An export has the base's own weights all the same.
    """
    recompute: Recompute = neutral("none")
    """What the backward pass computes again instead of keeping it. none: nothing; blocks: every layer, of which only
    the inputs are kept: far less memory, a quarter more work.
    """
    compile: bool = rounding(False)
    """Compile every decoder layer with torch.compile (fullgraph, dynamic shapes)."""
    matmul: Matmul = free("plain")
    """What the trained linear layers of the blocks multiply in. plain: model.precision. fp8: all three products of a
    layer in float8 by torchao, on Ada, Hopper and newer. int8: forward and the input's gradient in int8 with a scale
    for each row, the weight's gradient in model.precision, on Turing and newer. Both need memory.compile to be faster,
    round every gradient by some percent, and change nothing about what is stored.
    """
