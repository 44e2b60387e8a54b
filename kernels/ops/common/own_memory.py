"""Products that are written over one of their factors, for plain formulas inside autograd.Functions."""

import torch
from torch import Tensor


def times(own: Tensor, factor: Tensor) -> Tensor:
    """own * factor, written over `own`, which nobody else may refer to. Both have one shape and dtype.

    Inside torch.compile the result is a new tensor: torch 2.11 would lose, without a word, the gradient of an
    autograd.Function that returns the result of an operation in place. Inductor needs no more memory for it.
    """
    return own * factor if torch.compiler.is_compiling() else own.mul_(factor)
