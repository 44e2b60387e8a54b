"""Products in the memory of a factor that nobody else refers to, for the plain formulas inside autograd.Functions."""

import torch
from torch import Tensor


def times(own: Tensor, factor: Tensor) -> Tensor:
    """own * factor, of one shape and dtype, in the memory of `own` where nothing is compiled.

    Inside torch.compile the result is fresh: torch 2.11 would lose, without a word, the gradient of an
    autograd.Function that returns what an operation in place has made. Inductor needs no memory for it either way.
    """
    return own * factor if torch.compiler.is_compiling() else own.mul_(factor)
