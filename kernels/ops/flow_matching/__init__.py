"""The two ends of flow matching: noisy latents before the model, the squared error behind it."""

from .contract import flow_interpolate, flow_matching_loss

__all__ = ["flow_interpolate", "flow_matching_loss"]
