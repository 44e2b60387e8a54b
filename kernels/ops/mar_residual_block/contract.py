"""Residual block of the MAR denoiser: library matrix products with everything between them fused.

    h = LN(a) * (1 + scale) + shift     pre = h W1^T + b1     up = SiLU(pre) W2^T + b2     out = a + gate * up

Symbols: N rows, W width; modulation [N, 3W] = [shift ; scale ; gate], read through strides, never split into copies.

Units of N*W numbers moved outside the products:
    forward    4 modulate (x, shift, scale -> h), 2 SiLU, 4 gate (a, gate, up -> out)
    backward   5 gate (g, gate, up -> d up, d gate), 4 SiLU (g, pre -> d pre, SiLU again),
               9 modulate (g, a, scale, shift, residual g -> d a, d shift, d scale, h again)
Saved for backward: the arguments, pre and up. h and SiLU(pre), which the weight gradients need, are formed again on the
way: 3 units of traffic against 2 units of memory in every block. The modulation's gradient is written in place into one
[N, 3W] buffer. Bias and LayerNorm gradients are partial sums of the same kernels, added in a fixed order at the end:
one buffer, one sum. Frozen weights cost neither their product nor the operand for it.

Neither Liger nor torch has it; eager under autocast moves 4.0 and 3.7 times the minimum of 8 and 15 units.
"""

import torch
from torch import Tensor

from ..adaln_modulate.contract import (
    launch_into,
    launch_modulate,
    programs_of,
    reference_modulate,
    reference_modulate_backward,
)
from ..common.arguments import autocast_dtype, expect, expect_floating, expect_number, expect_shape, expect_tensors
from ..common.implementation import runs_triton
from ..common.torch_op import torch_op
from .kernels import launch_gate, launch_gate_backward, launch_silu, launch_silu_backward

Forward = tuple[Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def reference_gate(a: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    wide = torch.promote_types(a.dtype, torch.float32)
    return (a.to(wide) + gate.to(wide) * update.to(wide)).to(a.dtype).contiguous()


def reference_block(
    a: Tensor,
    modulation: Tensor,
    ln_w: Tensor,
    ln_b: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    eps: float,
) -> Forward:
    shift, scale, gate = modulation.chunk(3, dim=-1)
    pre = torch.addmm(b1, reference_modulate(a, shift, scale, ln_w, ln_b, eps, w1.dtype), w1.t())
    wide = pre.to(torch.promote_types(pre.dtype, torch.float32))
    up = torch.addmm(b2, (wide * wide.sigmoid()).to(pre.dtype), w2.t())
    return reference_gate(a, gate, up), pre, up


def launch_block(
    a: Tensor,
    modulation: Tensor,
    ln_w: Tensor,
    ln_b: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    eps: float,
) -> Forward:
    shift, scale, gate = modulation.chunk(3, dim=-1)
    pre = torch.addmm(b1, launch_modulate(a, shift, scale, ln_w, ln_b, eps, w1.dtype), w1.t())
    up = torch.addmm(b2, launch_silu(pre), w2.t())
    return launch_gate(a, gate, up), pre, up


def reference_block_backward(
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
    need: list[bool],
) -> Gradients:
    shift, scale, gate = modulation.chunk(3, dim=-1)
    wide = torch.promote_types(a.dtype, torch.float32)
    g = grad.to(wide)
    for_up = (g * gate.to(wide)).to(up.dtype)
    value = pre.to(wide)
    sigmoid = value.sigmoid()
    hidden = (value * sigmoid).to(pre.dtype)
    for_pre = ((for_up @ w2).to(wide) * sigmoid * (1 + value * (1 - sigmoid))).to(pre.dtype)
    for_h = for_pre @ w1
    dx, dscale, affine = reference_modulate_backward(for_h, a, scale, ln_w, ln_b, eps, True, True, True)
    h = reference_modulate(a, shift, scale, ln_w, ln_b, eps, w1.dtype)
    everything = (
        (dx.to(wide) + g).to(a.dtype),
        torch.cat([x.to(modulation.dtype) for x in (for_h, dscale, g * up.to(wide))], dim=-1),
        affine[0].to(ln_w.dtype, copy=True),
        affine[1].to(ln_b.dtype, copy=True),
        for_pre.t() @ h,
        for_pre.to(wide).sum(0).to(w1.dtype),
        for_up.t() @ hidden,
        for_up.to(wide).sum(0).to(w2.dtype),
    )
    return tuple(x if wanted else x.new_empty(0) for x, wanted in zip(everything, need, strict=True))  # type: ignore


def launch_block_backward(
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
    need: list[bool],
) -> Gradients:
    need_a, need_modulation, need_ln_w, need_ln_b, need_w1, need_b1, need_w2, need_b2 = need
    (rows, width), empty = a.shape, a.new_empty
    for_modulation = modulation.new_empty(tuple(modulation.shape) if need_modulation else 0)
    chunks = for_modulation.chunk(3, dim=-1) if need_modulation else (None, None, None)
    shift, scale, gate = modulation.chunk(3, dim=-1)
    # One sum at the end for four vectors: every kernel leaves its part of [programs, 4, W].
    partials = None
    if need_ln_w or need_ln_b or need_b1 or need_b2:
        partials = empty((programs_of(rows), 4, width), dtype=torch.float32)
    for_up = up.new_empty(tuple(up.shape))
    launch_gate_backward(grad, gate, up, chunks[2], for_up, None if partials is None else partials[:, 3])
    for_hidden = torch.mm(for_up, w2)
    for_pre = pre.new_empty(tuple(pre.shape))
    hidden = pre.new_empty(tuple(pre.shape)) if need_w2 else None
    launch_silu_backward(for_hidden, pre, for_pre, hidden, None if partials is None else partials[:, 2])
    for_w2 = w2.new_empty(0) if hidden is None else torch.mm(for_up.t(), hidden)
    del for_hidden, hidden, for_up
    for_h = torch.mm(for_pre, w1)
    for_a = a.new_empty(tuple(a.shape) if need_a else 0)
    h = w1.new_empty((rows, width)) if need_w1 else None
    launch_into(
        *(for_h, a, scale, ln_w, ln_b, eps),
        residual=grad,
        shift=shift,
        for_x=for_a if need_a else None,
        for_shift=chunks[0],
        for_scale=chunks[1],
        forward_out=h,
        partials=partials,
    )
    for_w1 = w1.new_empty(0) if h is None else torch.mm(for_pre.t(), h)
    sums = partials if partials is None else partials.sum(0)

    def total(index: int, wanted: bool, like: Tensor) -> Tensor:
        return like.new_empty(0) if sums is None or not wanted else sums[index].to(like.dtype, copy=True)

    return (
        *(for_a, for_modulation, total(0, need_ln_w, ln_w), total(1, need_ln_b, ln_b)),
        *(for_w1, total(2, need_b1, w1), for_w2, total(3, need_b2, w2)),
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
    run = launch_block if runs_triton(a) else reference_block
    with torch.autocast(a.device.type, enabled=False):
        return run(a, modulation, ln_w, ln_b, w1, b1, w2, b2, eps)


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
    need: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    run = launch_block_backward if runs_triton(a) else reference_block_backward
    with torch.autocast(a.device.type, enabled=False):
        return run(grad, a, modulation, ln_w, ln_b, w1, w2, pre, up, eps, need)


@_block_backward.register_fake
def _(grad, a, modulation, ln_w, ln_b, w1, w2, pre, up, eps, need):
    width = a.shape[1:]
    shapes = (a.shape, modulation.shape, width, width, w1.shape, width, w2.shape, width)
    likes = (a, modulation, ln_w, ln_b, w1, w1, w2, w2)
    return tuple(
        like.new_empty(tuple(shape) if wanted else 0) for like, shape, wanted in zip(likes, shapes, need, strict=True)
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
    if not runs_triton(grad):
        wide = torch.promote_types(grad.dtype, torch.float32)
        return (
            (grad.to(wide) * update.to(wide)).to(gate.dtype).contiguous() if need_gate else gate.new_empty(0),
            (grad.to(wide) * gate.to(wide)).to(update.dtype).contiguous() if need_update else update.new_empty(0),
        )
    for_gate = gate.new_empty(tuple(gate.shape) if need_gate else 0)
    for_update = update.new_empty(tuple(update.shape) if need_update else 0)
    launch_gate_backward(grad, gate, update, for_gate if need_gate else None, for_update if need_update else None)
    return for_gate, for_update


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
