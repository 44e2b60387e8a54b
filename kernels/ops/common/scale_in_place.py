"""A finished gradient from the forward pass, multiplied in the backward pass with the gradient of the loss.

That number is on the device, and it is usually 1. A kernel that reads it there and returns at once when it is 1 costs a
launch; it costs no pass over the gradient, and the host need not wait for the number.
"""

from torch import Tensor

from .implementation import runs_triton
from .optional_triton import LAUNCH, tl, triton
from .torch_op import torch_op


@triton.jit
def scale_in_place_kernel(gradient, upstream, numel, BLOCK: tl.constexpr):
    factor = tl.load(upstream).to(tl.float32)
    if factor != 1.0:
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = place < numel
        scaled = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32) * factor
        tl.store(gradient + place, scaled.to(gradient.dtype.element_ty), mask=mask)


def launch_scale(gradient: Tensor, upstream: Tensor) -> None:
    """As `scale_in_place`, for a contiguous gradient."""
    scale_in_place_kernel[(triton.cdiv(gradient.numel(), 4096),)](
        gradient, upstream, gradient.numel(), BLOCK=4096, num_warps=8, **LAUNCH
    )


@torch_op("scale_in_place", mutates_args=("gradient",))
def scale_in_place(gradient: Tensor, upstream: Tensor) -> None:
    """gradient *= upstream, in place; upstream is [] on the same device."""
    if runs_triton(gradient, upstream):
        launch_scale(gradient, upstream)
    elif gradient.dtype == upstream.dtype:
        gradient.mul_(upstream)
    else:  # not mul_: on a GPU that would round the factor to the gradient's dtype, and a loss scale to infinity
        gradient.copy_(gradient.to(upstream.dtype) * upstream)


@scale_in_place.register_fake
def _(gradient, upstream):
    return None
