"""A gradient that was formed in the forward pass, times the upstream gradient that arrives later.

The factor is on the device. A kernel that looks at it and leaves when it is 1 costs a launch, but no pass over the
gradient and no host that waits for the number.
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
    scale_in_place_kernel[(triton.cdiv(gradient.numel(), 4096),)](
        gradient, upstream, gradient.numel(), BLOCK=4096, num_warps=8, **LAUNCH
    )


@torch_op("scale_in_place", mutates_args=("gradient",))
def scale_in_place(gradient: Tensor, upstream: Tensor) -> None:
    """gradient *= upstream [], in place."""
    if runs_triton(gradient, upstream):
        launch_scale(gradient, upstream)
    else:  # not mul_: on a GPU that would round the factor to the gradient's dtype, and a loss scale to infinity
        gradient.copy_(gradient.to(upstream.dtype) * upstream)


@scale_in_place.register_fake
def _(gradient, upstream):
    return None
