"""Adapters: small trained matrices beside frozen layers (LoRA), in place of training the layers themselves."""

from dataclasses import dataclass
from typing import Annotated

from reca_fast.schema import PositiveFloat, Range

from .declare import fixed


@dataclass
class LoraConfig:
    """Train low-rank adapters of the linear layers that would be trained, and nothing else. A layer then computes
    W x + scale * B A x, with A [rank, in] and B [out, rank] trained in fp32 and W frozen. With memory.frozen=nf4 or
    int8 W is quantised as well, which is called QLoRA. `export` merges the adapters into the base's own weights.
    """

    rank: Annotated[int, Range(0, 1024)] = fixed(0)
    """Rank of the adapters; 0 is off, 16 to 64 are usual. Needs peft. Excludes memory.matmul and memory.swap.
    """
    alpha: PositiveFloat = fixed(32.0)
    """The adapters' product is scaled by alpha / rank."""
    dora: bool = fixed(False)
    """Train the length of every row of W + scale * B A apart from its direction (DoRA): nearer to full training for a
    small rank. Price: a product with W more in every pass, and three tensors as large as a layer's output.
    """
    rslora: bool = fixed(False)
    """Scale by alpha / sqrt(rank) instead, with which large ranks learn as fast as small ones."""
    targets: tuple[str, ...] = fixed(())
    """Last parts of the names of the layers that get adapters, such as ["q_proj", "v_proj"]; none takes every linear
    layer of the blocks that would be trained.
    """
