"""Residual block of the MAR denoiser: matrix products of a library, and one kernel for everything between two of them.

    h = LN(a) * (1 + scale) + shift     pre = h W1^T + b1     up = SiLU(pre) W2^T + b2     out = a + gate * up

Symbols: N rows of W numbers, a [N, W]. The modulation [N, 3W] is shift, scale and gate side by side. It is read where
it lies and never split into copies.

Memory traffic outside the products, in units of N * W numbers:

    forward    4 modulate (reads a, shift, scale; writes h), 2 SiLU, 4 gate (reads a, gate, up; writes out)
    backward   5 gate (reads the gradient, gate, up; writes the gradients of up and gate),
               4 SiLU (reads a gradient and pre; writes the gradient of pre, and SiLU(pre) again),
               9 modulate (reads two gradients, a, scale, shift; writes the gradients of a, shift, scale, and h again)

Kept for the backward pass: the arguments, pre and up. The gradients of the weights also need h and SiLU(pre). Those are
computed again on the way, which costs 3 units of traffic and saves 2 units of memory in every block. A frozen weight
costs neither its product nor the operand of that product.

The gradient of the modulation is written straight into one [N, 3W] buffer. Gradients of biases and of the LayerNorm are
sums over rows: each program of the same kernels leaves its part in one buffer, which is summed once, in a fixed order.

Neither Liger nor torch has it. Eager torch under autocast moves 4.0 times the minimum of 8 units forward and 3.7 times
the minimum of 15 units backward.
"""

import torch
from torch import Tensor

from ..adaln_modulate.kernels import Norm
from ..common.arguments import autocast_dtype, expect, expect_floating, expect_number, expect_shape, expect_tensors
from ..common.implementation import runs_triton
from ..common.torch_op import torch_op
from .kernels import launch_gate
from .passes import (
    BlockNeeds,
    Linear,
    gate_backward,
    launch_block,
    launch_block_backward,
    reference_block,
    reference_block_backward,
    reference_gate,
    reference_gate_backward,
)

# Registration


@torch_op("mar_residual_block")
def _block(
    a: Tensor,
    modulation: Tensor,
    ln_w: Tensor,
    ln_b: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    compute = launch_block if runs_triton(a) else reference_block
    with torch.autocast(a.device.type, enabled=False):
        made = compute(a, modulation, Norm(ln_w, ln_b, eps), Linear(w1, b1), Linear(w2, b2))
    return made.out, made.pre, made.up


@_block.register_fake
def _(a, modulation, ln_w, ln_b, w1, b1, w2, b2, eps):
    return a.new_empty(tuple(a.shape)), w1.new_empty(tuple(a.shape)), w1.new_empty(tuple(a.shape))


@torch_op("mar_residual_block_backward")
def _block_backward(
    grad: Tensor,
    a: Tensor,
    modulation: Tensor,
    ln_w: Tensor,
    ln_b: Tensor,
    w1: Tensor,
    w2: Tensor,
    pre: Tensor,
    up: Tensor,
    eps: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    compute = launch_block_backward if runs_triton(a) else reference_block_backward
    with torch.autocast(a.device.type, enabled=False):
        return compute(grad, a, modulation, Norm(ln_w, ln_b, eps), w1, w2, pre, up, BlockNeeds(*needs))


@_block_backward.register_fake
def _(grad, a, modulation, ln_w, ln_b, w1, w2, pre, up, eps, needs):
    width = a.shape[1:]
    shapes = (a.shape, modulation.shape, width, width, w1.shape, width, w2.shape, width)
    likes = (a, modulation, ln_w, ln_b, w1, w1, w2, w2)
    return tuple(
        like.new_empty(tuple(shape) if wanted else 0) for like, shape, wanted in zip(likes, shapes, needs, strict=True)
    )


def _block_save(ctx, inputs, output) -> None:
    a, modulation, ln_w, ln_b, w1, _, w2, _, ctx.eps = inputs
    _, pre, up = output
    ctx.mark_non_differentiable(pre, up)
    ctx.set_materialize_grads(False)  # else torch would fill zeros for pre and up
    ctx.save_for_backward(a, modulation, ln_w, ln_b, w1, w2, pre, up)


def _block_differentiate(ctx, grad, *_):
    if grad is None:
        return (None,) * 9
    need = list(ctx.needs_input_grad[:8])
    grads = _block_backward(grad, *ctx.saved_tensors, ctx.eps, need)
    return *(x if wanted else None for x, wanted in zip(grads, need, strict=True)), None


_block.register_autograd(_block_differentiate, setup_context=_block_save)


@torch_op("gated_residual")
def _gate(a: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    return (launch_gate if runs_triton(a) else reference_gate)(a, gate, update)


@_gate.register_fake
def _(a, gate, update):
    return a.new_empty(tuple(a.shape))


@torch_op("gated_residual_backward")
def _gate_backward(
    grad: Tensor, gate: Tensor, update: Tensor, need_gate: bool, need_update: bool
) -> tuple[Tensor, Tensor]:
    compute = gate_backward if runs_triton(grad) else reference_gate_backward
    return compute(grad, gate, update, need_gate, need_update)


@_gate_backward.register_fake
def _(grad, gate, update, need_gate, need_update):
    return (
        gate.new_empty(tuple(gate.shape) if need_gate else 0),
        update.new_empty(tuple(update.shape) if need_update else 0),
    )


def _gate_save(ctx, inputs, output) -> None:
    _, gate, update = inputs
    ctx.save_for_backward(gate, update)


def _gate_differentiate(ctx, grad: Tensor):
    need = ctx.needs_input_grad
    for_gate = for_update = None
    if need[1] or need[2]:
        for_gate, for_update = _gate_backward(grad, *ctx.saved_tensors, need[1], need[2])
    return grad if need[0] else None, for_gate if need[1] else None, for_update if need[2] else None


_gate.register_autograd(_gate_differentiate, setup_context=_gate_save)


# Public functions


def gated_residual(hidden_states: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """hidden_states + gate * update, in fp32 with one rounding; one launch each way.

    Args:
        hidden_states, gate, update: [..., W], any floating dtypes; row views are read in place.

    Returns:
        [..., W] in the dtype of `hidden_states`. Gradients for all three; that of hidden_states is the upstream one.

    Raises:
        ValueError: a shape, dtype or device that does not fit; the message starts with the argument's name.
    """
    expect_tensors(hidden_states=hidden_states, gate=gate, update=update)
    filled = hidden_states.dim() > 0 and hidden_states.shape[-1] > 0
    expect(filled, "hidden_states", "[..., W]", hidden_states.shape)
    expect_floating(hidden_states.device, hidden_states=hidden_states, gate=gate, update=update)
    expect_shape("gate", gate, *hidden_states.shape)
    expect_shape("update", update, *hidden_states.shape)
    width = hidden_states.shape[-1]
    flat = (x if x.dim() == 2 else x.reshape(-1, width) for x in (hidden_states, gate, update))
    return _gate(*flat).view(hidden_states.shape)


def mar_residual_block(
    hidden_states: Tensor,
    modulation: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    *,
    eps: float = 1e-6,
) -> Tensor:
    """a + gate * fc2(SiLU(fc1(LayerNorm(a) * (1 + scale) + shift))).

    Args:
        hidden_states: [N, W], a; any floating dtype.
        modulation: [N, 3W] = [shift ; scale ; gate], the projection of the condition.
        ln_weight, ln_bias: [W].
        fc1_weight, fc2_weight: [W, W]; fc1_bias, fc2_bias: [W]. The products run in their common dtype, under autocast
            in autocast's.
        eps: of the LayerNorm.

    Returns:
        [N, W] in the dtype of `hidden_states`. Gradients for every tensor.

    Raises:
        ValueError: a shape, dtype or device that does not fit; the message starts with the argument's name.
    """
    products = {"fc1_weight": fc1_weight, "fc1_bias": fc1_bias, "fc2_weight": fc2_weight, "fc2_bias": fc2_bias}
    norm = {"ln_weight": ln_weight, "ln_bias": ln_bias}
    expect_tensors(hidden_states=hidden_states, modulation=modulation, **norm, **products)
    expect_number("eps", eps)
    filled = hidden_states.dim() == 2 and hidden_states.shape[1] > 0
    expect(filled, "hidden_states", "[N, W]", hidden_states.shape)
    device, (rows, width) = hidden_states.device, hidden_states.shape
    expect_shape("modulation", modulation, rows, 3 * width)
    expect_shape("ln_weight", ln_weight, width)
    expect_shape("ln_bias", ln_bias, width)
    expect_shape("fc1_weight", fc1_weight, width, width)
    expect_shape("fc1_bias", fc1_bias, width)
    expect_shape("fc2_weight", fc2_weight, width, width)
    expect_shape("fc2_bias", fc2_bias, width)
    expect_floating(device, hidden_states=hidden_states, modulation=modulation, **norm, **products)
    if (dtype := autocast_dtype(device)) is not None:
        products = {name: x.to(dtype) for name, x in products.items()}
    dtypes = [x.dtype for x in products.values()]
    usual = max(dtypes, key=dtypes.count)  # the odd one out is the mistake
    for name, x in products.items():
        expect(x.dtype == usual, name, f"{usual} as the others have", x.dtype)
    vectors = (x.contiguous() for x in norm.values())
    return _block(hidden_states, modulation, *vectors, *products.values(), float(eps))[0]
