"""Several processes: how they share the model, and what they tell each other."""

from dataclasses import dataclass
from typing import Literal

from reca_fast.schema import PositiveInt

from .declare import neutral, rounding


@dataclass
class ParallelConfig:
    """How processes started by torchrun share the model (FSDP2). One process alone reads none of these settings."""

    replicate: PositiveInt = rounding(1)
    """How many times the model is held. With 1, all processes share one; with more, each group of processes shares its
    own and the gradients are summed between the groups, once in a step (HSDP).
    """
    reduce: Literal["fp32", "bf16"] = rounding("fp32")
    """Dtype in which gradients travel and are summed over the processes. bf16 halves the traffic, and rounds each
    gradient to 8 bits, and once more at every hop of a ring: for networks that hold the training up.
    """
    sync: Literal["pack", "step"] = rounding("pack")
    """When the processes of one model sum their gradients. pack: after every pack, so that each holds its share of them
    alone. step: in the last pack of a step, which saves the traffic of all others; until then every process holds whole
    gradients, 4 bytes (with reduce=bf16 2) for each trained number: 26 GB of BAGEL.
    """
    reshard: bool = neutral(True)
    """Free a block's gathered weights after its forward pass, and gather them again for its backward pass. false keeps
    them until then: a third less traffic, for the whole model in the dtype of the arithmetic on every process.
    """
