"""The passes of a residual block and of a gated residual: in plain torch, and with kernels between the products."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..adaln_modulate.contract import reference_modulate, reference_modulate_backward
from ..adaln_modulate.kernels import Needs, Norm, launch_into, launch_modulate, programs_of
from .kernels import launch_gate, launch_gate_backward, launch_silu, launch_silu_backward


class Linear(NamedTuple):
    """A linear layer: weight [W, W] and bias [W]."""

    weight: Tensor
    bias: Tensor


class Forward(NamedTuple):
    """What the forward pass computes, all [N, W]: the result, and what the backward pass reads."""

    out: Tensor
    pre: Tensor
    """Result of the first linear layer."""
    up: Tensor
    """Result of the second."""


class BlockNeeds(NamedTuple):
    """Which gradients of a block are wanted, in the order in which its arguments come."""

    hidden_states: bool
    modulation: bool
    ln_weight: bool
    ln_bias: bool
    fc1_weight: bool
    fc1_bias: bool
    fc2_weight: bool
    fc2_bias: bool


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""In the order of `BlockNeeds`; those not wanted have no elements."""


def reference_gate(a: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """a + gate * update in plain torch."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return (a.to(wide) + gate.to(wide) * update.to(wide)).to(a.dtype).contiguous()


def reference_gate_backward(
    grad: Tensor, gate: Tensor, update: Tensor, need_gate: bool, need_update: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of gate and update; those not wanted have no elements."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    return (
        (grad.to(wide) * update.to(wide)).to(gate.dtype).contiguous() if need_gate else gate.new_empty(0),
        (grad.to(wide) * gate.to(wide)).to(update.dtype).contiguous() if need_update else update.new_empty(0),
    )


def gate_backward(
    grad: Tensor, gate: Tensor, update: Tensor, need_gate: bool, need_update: bool
) -> tuple[Tensor, Tensor]:
    """As `reference_gate_backward`, in one launch."""
    for_gate = gate.new_empty(tuple(gate.shape) if need_gate else 0)
    for_update = update.new_empty(tuple(update.shape) if need_update else 0)
    launch_gate_backward(grad, gate, update, for_gate if need_gate else None, for_update if need_update else None)
    return for_gate, for_update


def reference_block(a: Tensor, modulation: Tensor, norm: Norm, fc1: Linear, fc2: Linear) -> Forward:
    """The forward pass of a block in plain torch: a [N, W], modulation [N, 3W]."""
    shift, scale, gate = modulation.chunk(3, dim=-1)
    pre = torch.addmm(fc1.bias, reference_modulate(a, shift, scale, norm, fc1.weight.dtype), fc1.weight.t())
    wide = pre.to(torch.promote_types(pre.dtype, torch.float32))
    up = torch.addmm(fc2.bias, (wide * wide.sigmoid()).to(pre.dtype), fc2.weight.t())
    return Forward(reference_gate(a, gate, up), pre, up)


def launch_block(a: Tensor, modulation: Tensor, norm: Norm, fc1: Linear, fc2: Linear) -> Forward:
    """As `reference_block`: three launches around two products of a library."""
    shift, scale, gate = modulation.chunk(3, dim=-1)
    pre = torch.addmm(fc1.bias, launch_modulate(a, shift, scale, norm, fc1.weight.dtype), fc1.weight.t())
    up = torch.addmm(fc2.bias, launch_silu(pre), fc2.weight.t())
    return Forward(launch_gate(a, gate, up), pre, up)


def reference_block_backward(
    grad: Tensor,
    a: Tensor,
    modulation: Tensor,
    norm: Norm,
    w1: Tensor,
    w2: Tensor,
    pre: Tensor,
    up: Tensor,
    needs: BlockNeeds,
) -> Gradients:
    """The backward pass of a block in plain torch; w1 and w2 are the weights of its linear layers."""
    shift, scale, gate = modulation.chunk(3, dim=-1)
    wide = torch.promote_types(a.dtype, torch.float32)
    g = grad.to(wide)
    for_up = (g * gate.to(wide)).to(up.dtype)
    value = pre.to(wide)
    sigmoid = value.sigmoid()
    hidden = (value * sigmoid).to(pre.dtype)
    for_pre = ((for_up @ w2).to(wide) * sigmoid * (1 + value * (1 - sigmoid))).to(pre.dtype)
    for_h = for_pre @ w1
    dx, dscale, affine = reference_modulate_backward(for_h, a, scale, norm, Needs(True, True, True))
    h = reference_modulate(a, shift, scale, norm, w1.dtype)
    everything = (
        (dx.to(wide) + g).to(a.dtype),
        torch.cat([x.to(modulation.dtype) for x in (for_h, dscale, g * up.to(wide))], dim=-1),
        *(row.to(x.dtype, copy=True) for row, x in zip(affine, norm[:2], strict=True) if x is not None),
        for_pre.t() @ h,
        for_pre.to(wide).sum(0).to(w1.dtype),
        for_up.t() @ hidden,
        for_up.to(wide).sum(0).to(w2.dtype),
    )
    return tuple(x if wanted else x.new_empty(0) for x, wanted in zip(everything, needs, strict=True))


def launch_block_backward(
    grad: Tensor,
    a: Tensor,
    modulation: Tensor,
    norm: Norm,
    w1: Tensor,
    w2: Tensor,
    pre: Tensor,
    up: Tensor,
    needs: BlockNeeds,
) -> Gradients:
    """As `reference_block_backward`: three launches between a library's products.

    All gradients of vectors are sums over rows. Every program of every kernel leaves its part of them in one buffer
    [programs, 4, W], which is summed once, at the end.
    """
    (rows, width), empty = a.shape, a.new_empty
    for_modulation = modulation.new_empty(tuple(modulation.shape) if needs.modulation else 0)
    chunks = for_modulation.chunk(3, dim=-1) if needs.modulation else (None, None, None)
    shift, scale, gate = modulation.chunk(3, dim=-1)
    partials = None
    if needs.ln_weight or needs.ln_bias or needs.fc1_bias or needs.fc2_bias:
        partials = empty((programs_of(rows), 4, width), dtype=torch.float32)
    for_up = up.new_empty(tuple(up.shape))
    launch_gate_backward(grad, gate, up, chunks[2], for_up, None if partials is None else partials[:, 3])
    for_hidden = torch.mm(for_up, w2)
    for_pre = pre.new_empty(tuple(pre.shape))
    hidden = pre.new_empty(tuple(pre.shape)) if needs.fc2_weight else None
    launch_silu_backward(for_hidden, pre, for_pre, hidden, None if partials is None else partials[:, 2])
    for_w2 = w2.new_empty(0) if hidden is None else torch.mm(for_up.t(), hidden)
    del for_hidden, hidden, for_up
    for_h = torch.mm(for_pre, w1)
    for_a = a.new_empty(tuple(a.shape) if needs.hidden_states else 0)
    h = w1.new_empty((rows, width)) if needs.fc1_weight else None
    launch_into(
        *(for_h, a, scale, norm),
        residual=grad,
        shift=shift,
        for_x=for_a if needs.hidden_states else None,
        for_shift=chunks[0],
        for_scale=chunks[1],
        forward_out=h,
        partials=partials,
    )
    for_w1 = w1.new_empty(0) if h is None else torch.mm(for_pre.t(), h)
    sums = partials if partials is None else partials.sum(0)

    def total(index: int, wanted: bool, like: Tensor | None) -> Tensor:
        dtype = a.dtype if like is None else like.dtype
        return a.new_empty(0, dtype=dtype) if sums is None or not wanted else sums[index].to(dtype, copy=True)

    return (
        *(for_a, for_modulation, total(0, needs.ln_weight, norm.weight), total(1, needs.ln_bias, norm.bias)),
        *(for_w1, total(2, needs.fc1_bias, w1), for_w2, total(3, needs.fc2_bias, w2)),
    )
