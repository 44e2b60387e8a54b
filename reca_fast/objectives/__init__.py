"""Prediction -> loss. Objectives return sums and counts, never means, and receive their randomness as tensors."""

from .flow_matching import flow_loss_by_task, shifted_logit_normal
from .next_token import next_token_loss
from .weighted import weighted_loss

__all__ = ["flow_loss_by_task", "next_token_loss", "shifted_logit_normal", "weighted_loss"]
