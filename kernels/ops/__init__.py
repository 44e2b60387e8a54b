"""The operations on the hot path, imported as `reca_fast.kernels`.

One folder is one operation; `common/` is what several of them use. An operation enters itself in `common/registry.py`
when its folder is imported, which is what the lines below do (docs/adding-an-operation.md). Nothing here imports the
rest of reca_fast.
"""

from .adaln_modulate import adaln_modulate as adaln_modulate
from .attention import BACKENDS as BACKENDS
from .attention import Varlen as Varlen
from .attention import available_backends as available_backends
from .attention import choose_backend as choose_backend
from .attention import varlen_attention as varlen_attention
from .blur_patch_embed import blur_patch_embed as blur_patch_embed
from .blur_patchify import blur_patchify as blur_patchify
from .common.choices import kernel_choices as kernel_choices
from .common.implementation import assume_gpu as assume_gpu
from .common.implementation import gpu_assumed as gpu_assumed
from .common.implementation import implementation as implementation
from .common.implementation import kernels as kernels
from .common.implementation import use_kernels as use_kernels
from .common.registry import OPERATIONS as OPERATIONS
from .common.transfer import to_device as to_device
from .flow_matching import flow_interpolate as flow_interpolate
from .flow_matching import flow_matching_loss as flow_matching_loss
from .fused_linear_cross_entropy import fused_linear_cross_entropy as fused_linear_cross_entropy
from .mar_diffusion_loss import mar_diffusion_loss as mar_diffusion_loss
from .mar_diffusion_loss import mar_noise as mar_noise
from .mar_residual_block import gated_residual as gated_residual
from .mar_residual_block import mar_residual_block as mar_residual_block
from .qk_norm_rope import qk_norm_rope as qk_norm_rope
from .rms_norm import rms_norm as rms_norm
from .swiglu import swiglu as swiglu
from .template_concat import template_concat as template_concat

__all__ = sorted(
    [
        *(name for operation in OPERATIONS.values() for name in operation.functions),
        *("BACKENDS", "Varlen", "available_backends", "choose_backend"),
        *("assume_gpu", "gpu_assumed", "implementation", "kernel_choices", "kernels", "to_device", "use_kernels"),
    ]
)
