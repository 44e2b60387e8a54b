"""What a step leaves behind to be logged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from reca_fast.data.loader import Served


@dataclass(frozen=True)
class StepStats:
    """Numbers of one step, of the whole global batch where nothing else is said. Tensors stay on the device until
    somebody logs them, which few steps do.
    """

    terms: Sequence[str]  # of the loss, those that the batch has tokens for
    sums: Tensor  # [terms] fp32: sums of per-token losses
    counts: dict[str, int]  # term -> tokens that it is a mean over
    grad_norm: Tensor  # 0-d, before clipping
    lr: float
    tokens: int
    images: int
    flops: float  # of this process
    served: Mapping[str, Served] = field(default_factory=dict)  # task -> its samples and their tokens
