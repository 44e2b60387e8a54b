"""What would run where: one line per operation, for `reca-fast doctor`."""

import torch

from .implementation import implementation, kernel_mode, why_not_triton
from .liger import liger_installed

FUSED = (
    "adaln_modulate",
    "blur_patch_embed",
    "blur_patchify",
    "flow_interpolate",
    "flow_matching_loss",
    "fused_linear_cross_entropy",
    "gated_residual",
    "mar_diffusion_loss",
    "mar_noise",
    "mar_residual_block",
    "qk_norm_rope",
    "template_concat",
)
"""Operations with Triton kernels of their own."""

BY_LIGER = ("rms_norm", "swiglu")


def kernel_choices(device: torch.device) -> dict[str, tuple[str, str]]:
    """Operation -> (what runs on `device`, why). Attention has backends of its own, see `available_backends`.

    Raises:
        ValueError: the setting asks for Triton and it cannot run on `device`, or the setting is unknown.
    """
    chosen = implementation(torch.empty(0, device=device))
    mode = kernel_mode()
    if chosen == "triton":
        why = f"kernels={mode}"
        liger = ("liger", why)
        if not liger_installed():
            liger = ("reference", "liger-kernel is not installed; pip install 'reca-fast[gpu]'")
        if device.type != "cuda":
            liger = ("reference", "Liger's kernels run on a GPU only")
    else:
        why = why_not_triton(device) or "Triton kernels run on a GPU"
        if mode == "reference":
            why = "kernels=reference"
        elif device.type == "cpu":
            why = "auto takes kernels on a GPU only"
        liger = ("reference", why)
    return dict.fromkeys(FUSED, (chosen, why)) | dict.fromkeys(BY_LIGER, liger)
