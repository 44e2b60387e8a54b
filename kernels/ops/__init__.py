"""The operations on the hot path, imported as `reca_fast.kernels`. Each file holds one operation and its plain-torch
reference.

Nothing here imports the rest of reca_fast.
"""

from . import flop_formulas
from .adaln_modulate import adaln_modulate
from .attention import BACKENDS, Varlen, available_backends, choose_backend, varlen_attention
from .blur_patch_embed import blur_patch_embed
from .blur_patchify import blur_patchify
from .common.choices import kernel_choices
from .common.implementation import implementation, kernels, use_kernels
from .common.transfer import to_device
from .flow_matching import flow_interpolate, flow_matching_loss
from .fused_linear_cross_entropy import fused_linear_cross_entropy
from .mar_diffusion_loss import mar_diffusion_loss, mar_noise
from .mar_residual_block import gated_residual, mar_residual_block
from .qk_norm_rope import qk_norm_rope
from .rms_norm import rms_norm
from .swiglu import swiglu
from .template_concat import template_concat

flop_formulas.register()

__all__ = [
    "BACKENDS",
    "Varlen",
    "adaln_modulate",
    "available_backends",
    "blur_patch_embed",
    "blur_patchify",
    "choose_backend",
    "flow_interpolate",
    "flow_matching_loss",
    "fused_linear_cross_entropy",
    "gated_residual",
    "implementation",
    "kernel_choices",
    "kernels",
    "mar_diffusion_loss",
    "mar_noise",
    "mar_residual_block",
    "qk_norm_rope",
    "rms_norm",
    "swiglu",
    "template_concat",
    "to_device",
    "use_kernels",
    "varlen_attention",
]
