"""From what a model predicts to a loss.

A loss here is a sum over the tokens of one pack, never a mean: the step divides by the tokens of all packs and
processes. Nothing here draws a random number.
"""

from .flow_matching import flow_loss_by_task, shifted_logit_normal
from .next_token import next_token_loss
from .weighted import weighted_loss

__all__ = ["flow_loss_by_task", "next_token_loss", "shifted_logit_normal", "weighted_loss"]
