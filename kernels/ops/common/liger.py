"""When Liger's kernels compute an operation: rms_norm and swiglu, for which Liger has the best there are."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .implementation import implementation


@cache
def liger_installed() -> bool:
    """Whether `liger_kernel` is installed. It is not imported here, for that takes seconds."""
    return find_spec("liger_kernel") is not None


def use_liger(*tensors: Tensor) -> bool:
    """Whether Liger's kernels are to compute on these tensors: they hold numbers on a GPU, kernels are chosen (see
    `implementation`), and Liger is installed. Never inside torch.compile, and never for fake tensors, which have no
    memory that a kernel could read.

    Raises ValueError when kernels are asked for that cannot run here.
    """
    first = tensors[0]
    if torch.compiler.is_compiling() or isinstance(first, FakeTensor):
        return False
    return implementation(*tensors) == "triton" and first.is_cuda and first.numel() > 0 and liger_installed()
