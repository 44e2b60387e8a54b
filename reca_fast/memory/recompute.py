"""Recomputation, also called activation or gradient checkpointing."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(blocks: Sequence[nn.Module]) -> None:
    """Make each block keep only its inputs for the backward pass, and run it a second time there.

    Price: the forward pass of every block twice, about a third more arithmetic in a step. Without gradients (sampling)
    it costs nothing, because nothing is kept there anyway.

    Excludes: blocks that draw random numbers (the second run would draw others), and blocks that write into their
    inputs. Values and gradients stay the same to the last bit, and so do the names of the parameters.
    """
    for block in blocks:
        block.forward = partial(_run_again_in_backward, block.forward)


def _run_again_in_backward(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
