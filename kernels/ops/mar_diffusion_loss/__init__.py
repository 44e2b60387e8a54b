"""The two ends of Harmon"s MAR diffusion head: noisy latents before it, its loss behind it."""

from .contract import mar_diffusion_loss, mar_noise

__all__ = ["mar_diffusion_loss", "mar_noise"]
