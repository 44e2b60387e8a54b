"""When Liger's kernels take over: the operations of which Liger already has the best one (rms_norm, swiglu)."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .implementation import implementation


@cache
def liger_installed() -> bool:
    """Whether `liger_kernel` is there; it is imported at the first use, which takes seconds."""
    return find_spec("liger_kernel") is not None


def use_liger(*tensors: Tensor) -> bool:
    """Liger's for tensors with elements on a GPU, as far as `use_kernels` wants kernels; not inside torch.compile, and
    not for fake tensors, which have no memory that a launch could read.

    Raises ValueError when kernels are asked for that cannot run here.
    """
    first = tensors[0]
    if torch.compiler.is_compiling() or isinstance(first, FakeTensor):
        return False
    return implementation(*tensors) == "triton" and first.is_cuda and first.numel() > 0 and liger_installed()
