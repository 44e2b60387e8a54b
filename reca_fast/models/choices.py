"""How this machine computes what a model asks for, chosen once, before any weight is read."""

import torch

from reca_fast.config import ModelConfig
from reca_fast.errors import UserError
from reca_fast.kernels import choose_backend, implementation, kernels, use_kernels

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""`ModelConfig.precision` -> dtype of the arithmetic."""


def choose_operations(options: ModelConfig, device: torch.device | str, dtype: torch.dtype) -> str:
    """Switch the fused operations to `options.kernels` for this process, and choose the attention backend.

    Args:
        options: `kernels` and `attention` count.
        device, dtype: of the arithmetic.

    Returns:
        The attention backend, for `reca_fast.kernels.varlen_attention`.

    Raises:
        UserError: this machine cannot run what the options ask for.
    """
    try:
        attention: str = choose_backend(options.attention, device, dtype)
        with kernels(options.kernels):
            implementation(torch.empty(0, device=device))  # raises before anything is chosen
        use_kernels(options.kernels)
    except ValueError as error:
        raise UserError(f"{error}; `reca-fast doctor` shows what this machine can run.") from None
    return attention
