"""The operations on the hot path, imported as `reca_fast.kernels`. Each file holds one operation and its plain-torch
reference.

Nothing here imports the rest of reca_fast.
"""

from .attention import BACKENDS, Varlen, available_backends, choose_backend, varlen_attention
from .blur_patchify import blur_patchify
from .flow_matching import flow_interpolate, flow_matching_loss
from .qk_norm_rope import qk_norm_rope
from .rms_norm import rms_norm
from .swiglu import swiglu
from .transfer import to_device

__all__ = [
    "BACKENDS",
    "Varlen",
    "available_backends",
    "blur_patchify",
    "choose_backend",
    "flow_interpolate",
    "flow_matching_loss",
    "qk_norm_rope",
    "rms_norm",
    "swiglu",
    "to_device",
    "varlen_attention",
]
