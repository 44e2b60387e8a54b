"""Memory: where each kind of number is kept while a model trains, and what is computed twice instead of being kept.

`memory/` pulls these levers. What excludes what stands in docs/memory.md and is refused by `config/rules.py`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from reca_fast.schema import Fraction, Range

from .declare import fixed, free, neutral, rounding

Trained = Literal["fp32", "bf16"]
Frozen = Literal["compute", "int8", "nf4"]
Recompute = Literal["none", "blocks", "selective", "budget"]
Matmul = Literal["plain", "fp8", "int8"]
Order = Literal["pack", "layer"]
Home = Literal["device", "host"]
Gradients = Literal["device", "host", "twice"]
Gibibytes = Annotated[float, Range(at_least=0, at_most=2**20)]


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
    the inputs are kept: far less memory, a quarter more work; selective: what is wider than a layer's input, such as
    the inner rows of an MLP; budget: what does not fit memory.budget_gib.
    """
    budget_gib: Gibibytes = neutral(0.0)
    """With memory.recompute budget, how many GiB the layers may keep of one pack for its backward pass. What saves the
    most arithmetic for its bytes is kept first; the choice is printed in the first step. Less than the layers' inputs
    take cannot be had: then it is memory.recompute blocks.
    """
    keep_on: Home = neutral("device")
    """Where what the backward pass needs of a layer waits for it: on the device, or in pinned host memory, from which
    it returns while the layer behind is computed. Price: these bytes cross the bus twice in a step, hidden where the
    bus keeps up, and as much host memory.
    """
    mlp_rows: Annotated[int, Range(at_least=0, at_most=2**24)] = rounding(0)
    """Run the MLP of a layer on so many rows at a time and keep nothing of its inside, so that a long pack needs its
    wide rows for one chunk only; 0: on all rows at once. Price: an MLP's products run twice; with memory.recompute
    blocks, all but the last do anyhow. Some thousand rows keep products fast. Excludes memory.compile.
    """
    compile: bool = rounding(False)
    """Compile every decoder layer with torch.compile (fullgraph, dynamic shapes)."""
    matmul: Matmul = free("plain")
    """What the trained linear layers of the blocks multiply in. plain: model.precision. fp8: all three products of a
    layer in float8 by torchao, on Ada, Hopper and newer. int8: forward and the input's gradient in int8 with a scale
    for each row, the weight's gradient in model.precision, on Turing and newer. Both need memory.compile to be faster,
    round every gradient by some percent, and change nothing about what is stored.
    """
    order: Order = rounding("pack")
    """pack: each pack of a step goes forward and backward through the whole model before the next one. layer: all packs
    go through one block before the next block begins, so that weights in host memory come once for a step and not once
    for a pack, and a block's gradient is complete as soon as the backward pass has left the block. What blocks hand to
    each other is then kept for all packs at once. Each process holds all weights.
    """
    gradients: Gradients = rounding("device")
    """Where gradients wait until their norm is known, which clipping and the skipping of a bad step need before the
    first weight changes. device: all at once, as many bytes as the trained weights. host: a block's go to host memory
    as soon as they are complete, and come back for the update, block by block: two transfers. twice: nowhere, a first
    forward and backward pass measures the norm and a second one updates each block as it goes: twice the time, no
    memory. host and twice need memory.order=layer.
    """
    frozen_on: Home = neutral("device")
    """host: a block's frozen weights live in pinned host memory and visit the GPU while the block works, two blocks at
    a time; each comes twice in a step. Needs memory.order=layer and recomputation.
    """
    swap: Fraction = neutral(0.0)
    """Share of the blocks whose trained weights live in pinned host memory. They come for the forward pass, the
    backward pass and the update, and go home after it. Needs memory.order=layer and recomputation.
    """


@dataclass
class DrawingMemory:
    """Where weights are kept while pictures are drawn, and none is trained."""

    frozen: Frozen = neutral("compute")
    """compute: the blocks' linear layers in the dtype of the arithmetic. int8, nf4: in 8 or 4 bits, for a smaller GPU;
    pictures differ a little.
    """
    frozen_on: Home = neutral("device")
    """host: the blocks' weights live in host memory and visit the GPU, two blocks at a time, in every evaluation of the
    model: BAGEL takes 3 GB of the GPU in place of 30, and a second or two for an evaluation. No bit changes.
    """
