"""Arguments of the loss that travel through its passes together."""

from typing import NamedTuple

from torch import Tensor


class Settings(NamedTuple):
    """The loss of a row, as `fused_linear_cross_entropy` defines it, and how much memory its logits may take."""

    start: int
    """First class of `vocab_range`."""
    stop: int
    """One after its last class."""
    ignore_index: int
    label_smoothing: float
    z_loss: float
    max_logits_bytes: int


class Needs(NamedTuple):
    """Which gradients are to be computed."""

    hidden_states: bool
    weight: bool
    bias: bool


class Gradients(NamedTuple):
    """Those that are not needed have no elements."""

    hidden_states: Tensor
    """[N, D]"""
    weight: Tensor
    """[classes in range, D]"""
    bias: Tensor
    """[classes in range]"""


class Result(NamedTuple):
    """What one pass over all rows computes. N rows, of which some may be ignored."""

    total: Tensor
    """[] The sum of the losses, each times its weight, times `inverse`."""
    losses: Tensor
    """[N] The losses before they are weighted; 0 for ignored rows."""
    inverse: Tensor
    """[] For a mean, one over the sum of the weights; else 1."""
    pending: Tensor
    """[] In fp16, the factor that the gradients still lack (see `passes.forward`). Otherwise they are finished, and
    this has no elements.
    """
    gradients: Gradients
