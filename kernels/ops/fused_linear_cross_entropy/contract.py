"""Cross-entropy of a linear layer's outputs, of which only a part is ever in memory.

    logits = X W^T + b over the classes start .. stop     lse = logsumexp(logits)
    l = lse - (1 - s) logits[label] - s mean(logits) + z lse^2         "none": w l, "sum": sum w l, "mean": / sum w

hidden_states (X): [N, D]; weight (W): [V, D] of the same dtype, cast to it under autocast; bias (b): [V]; labels: [N]
int64, ids of the whole vocabulary; row_weight (w): [N]; s is the label smoothing, z the factor of the z-loss. Rows
whose label is `ignore_index` take no part, not even in a matrix product. With no row left (or weights that add up to 0)
the mean is 0 with zero gradients, where torch has nan: a pack without text must not poison a step.

Rows are taken in chunks whose logits fit `max_logits_bytes`; with few rows or a `vocab_range` that is one chunk. Of
each chunk the logits are computed by a product, one kernel replaces them by their gradient, and two more products
follow (passes.py). With "mean" and "sum" the gradients are finished in the forward pass. The backward pass multiplies
them, in place, with the gradient of the total, by a kernel that returns at once when that is 1; a second backward pass
computes them anew. With "none" they are computed in the backward pass, from logits that are computed again.

The weight's gradient is summed over chunks in fp32. Its rows outside `vocab_range` are never computed. Autograd wants a
gradient of all rows; that is written once, in the backward pass, unless `weight.grad` is there to be added to. Without
a range, the gradient itself becomes `weight.grad` where autograd would only put it there.

Memory beyond arguments and gradients: the logits of a chunk, 2048 rows of D numbers, and with several chunks an fp32
gradient of the weight; under autocast also the weight of the range, cast. In fp16 the gradient of the weight is fp32
until the backward pass. The rows of X that count are gathered where their gradient will be, so they cost nothing.

With labels on the CPU the rows that count are known and the labels are checked, even if hidden states are on a GPU (the
copy does not wait). With labels on a GPU the number of rows stays there (ragged_matmul.py), nothing waits, and an
impossible label makes the loss nan.

Liger multiplies the ignored rows too, sums the weight's gradient in the weight's dtype, knows no range of classes, and
drops to 16-bit accesses at odd vocabularies. torch's own has no z-loss, no row weights and no range.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ..common.arguments import (
    Reduction,
    autocast_dtype,
    expect,
    expect_floating,
    expect_index,
    expect_number,
    expect_reduction,
    expect_shape,
    expect_tensors,
)
from ..common.reductions import checked_row_weight
from ..common.scale_in_place import scale_in_place
from ..common.torch_op import torch_op
from .passes import forward, weight_gradient_dtype, wide_dtype
from .settings import Needs, Settings


@torch_op("fused_linear_cross_entropy")
def _loss(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    row_weight: Tensor | None,
    mean: bool,
    needs: list[bool],
    start: int,
    stop: int,
    ignore_index: int,
    smoothing: float,
    z_loss: float,
    max_bytes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `Result`, its gradients one by one: an operation of torch returns tensors only."""
    settings = Settings(start, stop, ignore_index, smoothing, z_loss, max_bytes)
    made = forward(hidden_states, weight, bias, labels, row_weight, mean, Needs(*needs), settings)
    for_hidden, for_weight, for_bias = made.gradients
    return made.total, made.losses, made.inverse, made.pending, for_hidden, for_weight, for_bias


@_loss.register_fake
def _(hidden_states, weight, bias, labels, row_weight, mean, needs, start, stop, *_):
    rows, wide = hidden_states.shape[0], wide_dtype(hidden_states.dtype)
    new = hidden_states.new_empty
    return (
        new((), dtype=wide),
        new(rows, dtype=wide),
        new((), dtype=wide),
        new(() if hidden_states.dtype == torch.float16 else 0, dtype=wide),
        *_fake_gradients(hidden_states, weight, needs, start, stop),
    )


def _fake_gradients(hidden_states, weight, needs, start, stop):
    (rows, dim), classes = hidden_states.shape, stop - start
    return (
        hidden_states.new_empty(rows if needs[0] else 0, dim),
        weight.new_empty(classes if needs[1] else 0, dim, dtype=weight_gradient_dtype(hidden_states, weight)),
        hidden_states.new_empty(classes if needs[2] else 0, dtype=wide_dtype(hidden_states.dtype)),
    )


@torch_op("fused_linear_cross_entropy_rows")
def _rows(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    start: int,
    stop: int,
    ignore_index: int,
    smoothing: float,
    z_loss: float,
    max_bytes: int,
) -> Tensor:
    """The losses alone [N]."""
    settings = Settings(start, stop, ignore_index, smoothing, z_loss, max_bytes)
    return forward(hidden_states, weight, bias, labels, None, False, Needs(False, False, False), settings).losses


@_rows.register_fake
def _(hidden_states, *_):
    return hidden_states.new_empty(hidden_states.shape[0], dtype=wide_dtype(hidden_states.dtype))


@torch_op("fused_linear_cross_entropy_backward")
def _backward(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    factor: Tensor,
    needs: list[bool],
    start: int,
    stop: int,
    ignore_index: int,
    smoothing: float,
    z_loss: float,
    max_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Finished gradients, where `factor` [N] is the derivative of the total by the loss of each row."""
    settings = Settings(start, stop, ignore_index, smoothing, z_loss, max_bytes)
    made = forward(hidden_states, weight, bias, labels, factor, False, Needs(*needs), settings)
    if hidden_states.dtype == torch.float16:
        for gradient in made.gradients:
            scale_in_place(gradient, made.pending)
    for_hidden, for_weight, for_bias = made.gradients
    return for_hidden, for_weight, for_bias


@_backward.register_fake
def _(hidden_states, weight, bias, labels, factor, needs, start, stop, *_):
    return _fake_gradients(hidden_states, weight, needs, start, stop)


# A backward pass reads ctx.saved_tensors once: under checkpointing they are computed again, and each is handed out
# once.


def _add_in_place(weight: Tensor, start: int, gradient: Tensor) -> bool:
    """Whether the gradient of the classes from `start` on has been added to those rows of weight.grad, or, where there
    was none, the gradient of all classes has become it.

    That is done only where autograd would do no more with a gradient than add it. A dense one, zero outside the range,
    need not be made then. And autograd adds up what several losses want of one weight before it adds that to
    weight.grad: at Show-o's size, that would be one more tensor of half a gigabyte.
    """
    if not weight.is_leaf or type(weight) not in (Tensor, torch.nn.Parameter) or type(gradient) is not Tensor:
        return False
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return False  # DistributedDataParallel watches autograd's own node, where nothing in Python shows it
    total = weight.grad
    if total is None and gradient.shape != weight.shape:
        return False
    if total is not None and (type(total) is not Tensor or total.layout != torch.strided or total.requires_grad):
        return False
    if (gradient if total is None else total).dtype != weight.dtype:
        return False
    if weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None):
        return False
    try:
        if not torch._C._will_engine_execute_node(get_gradient_edge(weight).node):
            return False
    except RuntimeError:  # autograd.grad(), which wants the gradient itself
        return False
    if total is None:
        weight.grad = gradient
    else:
        total[start : start + len(gradient)].add_(gradient)
    return True


def _spread(gradient: Tensor, like: Tensor, start: int) -> Tensor:
    """The gradient of all rows of `like`: from `start` on the given one, zero elsewhere."""
    out = torch.zeros_like(like, memory_format=torch.contiguous_format)
    out[start : start + len(gradient)] = gradient
    return out


def _for_autograd(ctx, weight: Tensor, bias: Tensor, gradients: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients as autograd wants them: those of weight and bias for the whole vocabulary, None where unneeded."""
    start, stop = ctx.settings.start, ctx.settings.stop
    out: list[Tensor | None] = list(gradients)
    if ctx.needs[1]:
        if _add_in_place(weight, start, gradients[1]):
            out[1] = None
        elif stop - start < len(weight):
            out[1] = _spread(gradients[1], weight, start)
        else:
            out[1] = gradients[1].to(weight.dtype)
    if ctx.needs[2]:
        whole = stop - start == len(bias)
        out[2] = gradients[2].to(bias.dtype) if whole else _spread(gradients[2], bias, start)
    return [x if need else None for x, need in zip(out, ctx.needs, strict=True)]


def _loss_setup(ctx, inputs, output):
    hidden_states, weight, bias, labels, row_weight, ctx.mean, needs, *settings = inputs
    loss, losses, inverse, pending, *gradients = output
    ctx.mark_non_differentiable(losses, inverse, pending, *gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden_states, weight, bias, labels, row_weight, loss, losses, inverse, pending)
    ctx.needs, ctx.settings = needs, Settings(*settings)
    # Not among the saved tensors: those must not be written to. Detached: an output in ctx would keep itself alive.
    ctx.gradients = [x.detach() for x in gradients]


def _loss_vjp(ctx, upstream, *_):
    if upstream is None:
        return (None,) * 13
    if torch.is_grad_enabled():
        raise RuntimeError("fused_linear_cross_entropy has no second derivative (create_graph=True)")
    hidden_states, weight, bias, labels, row_weight, loss, losses, inverse, pending = ctx.saved_tensors
    gradients, ctx.gradients = ctx.gradients, None
    if gradients is None:  # handed out by an earlier backward pass
        factor = (upstream * inverse).expand(len(losses)) if row_weight is None else upstream * inverse * row_weight
        gradients = _backward(hidden_states, weight, bias, labels, factor, ctx.needs, *ctx.settings)
    else:
        factor = upstream * pending if hidden_states.dtype == torch.float16 else upstream
        for number, gradient in enumerate(gradients):
            if not ctx.needs[number]:
                continue
            if type(gradient) is not Tensor:  # traced
                gradients[number] = (gradient.to(factor.dtype) * factor).to(gradient.dtype)
            else:
                scale_in_place(gradient, factor)
    for_row_weight = None
    if ctx.needs_input_grad[4]:
        kept = losses - loss if ctx.mean else losses
        ignored = labels.to(losses.device, non_blocking=True) == ctx.settings.ignore_index
        for_row_weight = (torch.where(ignored, 0, kept) * (inverse * upstream)).to(row_weight.dtype)
    for_hidden, for_weight, for_bias = _for_autograd(ctx, weight, bias, gradients)
    return for_hidden, for_weight, for_bias, None, for_row_weight, *(None,) * 8


_loss.register_autograd(_loss_vjp, setup_context=_loss_setup)


def _rows_setup(ctx, inputs, output):
    hidden_states, weight, bias, labels, *settings = inputs
    ctx.settings = Settings(*settings)
    ctx.save_for_backward(hidden_states, weight, bias, labels)


def _rows_vjp(ctx, upstream):
    if torch.is_grad_enabled():
        raise RuntimeError("fused_linear_cross_entropy has no second derivative (create_graph=True)")
    ctx.needs = list(ctx.needs_input_grad[:3])
    hidden_states, weight, bias, labels = ctx.saved_tensors
    gradients = _backward(hidden_states, weight, bias, labels, upstream, ctx.needs, *ctx.settings)
    return *_for_autograd(ctx, weight, bias, gradients), *(None,) * 7


_rows.register_autograd(_rows_vjp, setup_context=_rows_setup)


def fused_linear_cross_entropy(
    hidden_states: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    row_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    vocab_range: tuple[int, int] | None = None,
    reduction: Reduction = "mean",
    max_logits_bytes: int = 256 * 2**20,
) -> Tensor:
    """Cross-entropy of hidden_states @ weight^T + bias.

    Args:
        hidden_states: [N, D], any strides.
        weight: [V, D], same dtype and device. Under autocast the products run in autocast's dtype, and the weight's
            gradient leaves them in that of the weight.
        labels: [N] int64, ids of the whole vocabulary, on the CPU or beside hidden_states.
        bias: [V], any floating-point dtype.
        row_weight: [N], any real dtype, or None for ones.
        ignore_index: label of rows that take no part.
        label_smoothing: in [0, 1], spread uniformly over the classes in range.
        z_loss: adds z_loss * logsumexp^2 to the loss of a row.
        vocab_range: (start, stop): softmax over those classes only; labels must lie in it.
        reduction: "none" = w·l [N] (0 for ignored rows), "sum" = sum of w·l, "mean" = sum of w·l / sum of w over rows
            that are not ignored, or 0 with zero gradients if that sum is 0 (torch: nan).
        max_logits_bytes: bound of the logits that exist at once; at least one row.

    Returns:
        fp32, or fp64 for fp64 inputs. Gradients for hidden_states, weight, bias and row_weight; no second derivatives.

    Raises:
        ValueError: a wrong shape, dtype, device, range or value; the message starts with the argument's name. Labels
            on a GPU are not read by the host: one out of range makes its loss nan instead.
    """
    expect_tensors(hidden_states=hidden_states, weight=weight, labels=labels)
    expect(hidden_states.dim() == 2, "hidden_states", "[N, D]", hidden_states.shape)
    rows, dim = hidden_states.shape
    fits = weight.dim() == 2 and weight.shape[1] == dim and weight.shape[0] > 0
    expect(fits, "weight", ["V > 0", dim], weight.shape)
    device, vocabulary = hidden_states.device, weight.shape[0]
    expect_shape("labels", labels, rows)
    expect_shape("bias", bias, vocabulary)
    row_weight = checked_row_weight(row_weight, rows, device)
    expect(labels.dtype == torch.int64, "labels", "torch.int64", labels.dtype)
    expect(labels.device in (device, torch.device("cpu")), "labels", f"a tensor on {device} or cpu", labels.device)
    expect_floating(device, hidden_states=hidden_states, weight=weight, bias=bias)
    start, stop = (0, vocabulary) if vocab_range is None else _range(vocab_range, vocabulary)
    expect_number("label_smoothing", label_smoothing, 0, 1)
    expect_number("z_loss", z_loss)
    expect_reduction(reduction)
    expect_number("max_logits_bytes", max_logits_bytes, 1)
    expect_index("ignore_index", ignore_index)
    dtype = autocast_dtype(device)
    if dtype is not None and torch.float64 not in (hidden_states.dtype, weight.dtype):
        hidden_states = hidden_states.to(dtype)
    else:
        same = weight.dtype == hidden_states.dtype
        expect(same, "weight", f"{hidden_states.dtype} like hidden_states", weight.dtype)
    row_weight = None if row_weight is None else row_weight.to(wide_dtype(hidden_states.dtype))
    settings = Settings(start, stop, ignore_index, float(label_smoothing), float(z_loss), int(max_logits_bytes))
    if reduction == "none":
        losses = _rows(hidden_states, weight, bias, labels, *settings)
        if row_weight is None:
            return losses
        # Ignored rows have a loss of 0, which stays one whatever their weight; no look at the labels, which may be far.
        return losses * torch.where(losses == 0, row_weight.nan_to_num(), row_weight)
    grad = torch.is_grad_enabled()
    needs = [grad and x is not None and x.requires_grad for x in (hidden_states, weight, bias)]
    return _loss(hidden_states, weight, bias, labels, row_weight, reduction == "mean", needs, *settings)[0]


def _range(vocab_range: tuple[int, int], vocabulary: int) -> tuple[int, int]:
    pair = isinstance(vocab_range, Sequence) and len(vocab_range) == 2
    if not pair or any(isinstance(x, bool) or not isinstance(x, int) for x in vocab_range):
        raise ValueError(f"vocab_range: expected two integers (start, stop), got {vocab_range}")
    start, stop = vocab_range
    if not 0 <= start < stop <= vocabulary:
        raise ValueError(f"vocab_range: expected 0 <= start < stop <= {vocabulary}, got {vocab_range}")
    return start, stop
