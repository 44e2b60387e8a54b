"""The option `deterministic`: on a GPU, only algorithms that add in a fixed order."""

import os

import torch


def make_deterministic() -> None:
    """For the whole process; call it before the first product on a GPU.

    cuBLAS then keeps one workspace per stream, torch takes its ordered algorithms (FlashAttention's backward pass among
    them) and raises a RuntimeError where it has none. The fused operations here are deterministic anyway.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Would fill every new tensor, to show kernels that leave holes in it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
