"""Cross-entropy of a linear layer's outputs without ever holding all of them.

    logits = X W^T + b over the classes start .. stop     lse = logsumexp(logits)
    l = lse - (1 - s) logits[label] - s mean(logits) + z lse^2         "none": w l, "sum": sum w l, "mean": / sum w

hidden_states (X): [N, D]; weight (W): [V, D] of the same dtype; bias (b): [V]; labels: [N] int64, ids of the whole
vocabulary; row_weight (w): [N]. Rows whose label is `ignore_index` take no part, not even in a matrix product. With no
row left (or weights that add up to 0) the mean is 0 with zero gradients, where torch has nan: a pack without text must
not poison a step.

Rows go through in chunks whose logits fit `max_logits_bytes`; with few rows or a `vocab_range` that is one chunk. Per
chunk: a product, one row kernel that replaces logits by their gradient (cross_entropy_kernels.py), two products. The
gradients are finished in the forward pass ("mean", "sum") and scaled in backward, in place, by a kernel that returns at
once when the upstream gradient is 1; a second backward recomputes. "none" forms them in backward, from recomputed
logits. The weight gradient is summed over chunks in fp32. Its rows outside `vocab_range` are never computed; autograd
wants a dense tensor, which is written once in backward, unless `weight.grad` is there to be added to.
Peak extra memory: the logits of a chunk, 2048 rows of D, and with several chunks an fp32 weight gradient. The gathered
rows of X lie where their gradient will be.

Labels on the CPU: the rows are known exactly and checked, also beside hidden states on a GPU (the copy does not wait).
Labels on the GPU: the count of rows stays there (ragged_matmul.py), nothing waits, and an impossible label makes the
loss nan.

Liger multiplies the ignored rows too, sums the weight gradient in the weight's dtype, knows no range of classes, and
drops to 16-bit accesses at odd vocabularies; torch's own has no z-loss, no row weights and no range.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from .backend import implementation
from .cross_entropy_kernels import launch_cross_entropy_rows
from .flow_matching import _scale_in_place
from .ragged_matmul import ragged_losses_and_gradients
from .transfer import to_device

Reduction = Literal["mean", "sum", "none"]
BLOCK = 2048  # rows of the gradient for hidden states that are formed at once

Needs = tuple[bool, bool, bool]
"""Which gradients to form: hidden_states, weight, bias."""


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


# Reference


def reference_cross_entropy_rows(
    buffer: Tensor,
    classes: int,
    bias: Tensor | None,
    labels: Tensor,
    scale: Tensor | None,
    start: int,
    smoothing: float,
    z_loss: float,
) -> Tensor:
    """Losses of the logits in `buffer` [rows, width >= classes]; with `scale` it becomes their gradient."""
    logits = buffer[:, :classes].to(_wide(buffer.dtype))
    if bias is not None:
        logits = logits + bias[:classes]
    target = labels - start
    inside = (target >= 0) & (target < classes)
    target = torch.where(inside, target, 0)[:, None]
    lse = logits.logsumexp(-1)
    loss = lse - (1 - smoothing) * logits.gather(1, target)[:, 0] + z_loss * lse.square()
    if smoothing:
        loss = loss - smoothing * logits.mean(-1)
    if scale is not None:
        gradient = (logits - lse[:, None]).exp_().mul_(1 + 2 * z_loss * lse[:, None])
        if smoothing:
            gradient -= smoothing / classes
        gradient.scatter_add_(1, target, gradient.new_full(target.shape, smoothing - 1))
        buffer[:, :classes] = gradient.mul_(torch.where(inside, scale, torch.nan)[:, None])
    return torch.where(inside, loss, torch.nan)


# The passes over chunks


def _chunk(rows: int, row_bytes: int, max_bytes: int) -> int:
    """Rows per chunk: as equal as possible, of whole tiles where that fits."""
    most = max(1, max_bytes // row_bytes)
    size = -(-rows // -(-rows // most))
    return min(most, -(-size // 128) * 128) if size < rows else size


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in total's wider dtype."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        b = b.to(total.dtype)
        for part in range(0, len(a), BLOCK):  # no wide copy of all logits
            total[part : part + BLOCK].addmm_(a[part : part + BLOCK].to(total.dtype), b)


def losses_and_gradients(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    rows: Tensor | None,
    scale: Tensor,
    needs: Needs,
    start: int,
    smoothing: float,
    z_loss: float,
    max_bytes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Library products around the row pass. weight and bias are those of the range.

    rows: [n], ascending ids of the rows that count, or None for all; labels, scale: [n].
    Returns losses [n] and the gradients [N, D], [classes, D], [classes]; of size 0 where not needed.
    """
    run = launch_cross_entropy_rows if implementation(hidden_states) == "triton" else reference_cross_entropy_rows
    (total, dim), classes, count = hidden_states.shape, len(weight), len(labels)
    width = -(-classes // 64) * 64
    empty, wide = hidden_states.new_empty, _wide(hidden_states.dtype)
    chunk = _chunk(count, width * hidden_states.element_size(), max_bytes) if count else 0
    for_hidden = empty(total if needs[0] else 0, dim)
    several = chunk < count
    for_weight = empty(classes if needs[1] else 0, dim, dtype=wide if several else weight.dtype)
    for_bias = hidden_states.new_zeros(classes if needs[2] else 0, dtype=wide)
    losses = empty(count, dtype=wide)
    if not count:
        return losses, for_hidden.zero_(), for_weight.zero_(), for_bias
    padded = None
    if bias is not None:
        padded = bias.new_zeros(width, dtype=wide)
        padded[:classes] = bias
    buffer = empty(chunk, width)
    # From the last chunk to the first: row i of the compact ones comes from row rows[i] >= i, so that gradients written
    # there never meet the gathered hidden states of chunks still to come.
    for first in reversed(range(0, count, chunk)):
        here = slice(first, min(first + chunk, count))
        size = here.stop - here.start
        if rows is None:
            x = hidden_states[here]
        elif needs[0]:
            x = torch.index_select(hidden_states, 0, rows[here], out=for_hidden[here])
        else:
            x = hidden_states.index_select(0, rows[here])
        logits = buffer[:size, :classes]
        torch.mm(x, weight.t(), out=logits)
        losses[here] = run(
            buffer[:size], classes, padded, labels[here], scale[here] if any(needs) else None, start, smoothing, z_loss
        )
        if needs[2]:
            for_bias += logits.sum(0, dtype=wide)
        if needs[1] and here.stop == count:
            if several and x.dtype != wide:
                _add_product(for_weight.zero_(), logits.t(), x)
            else:
                torch.mm(logits.t(), x, out=for_weight)
        elif needs[1]:
            _add_product(for_weight, logits.t(), x)
        if needs[0] and rows is None:
            torch.mm(logits, weight, out=for_hidden[here])
        elif needs[0] and rows is not None:
            for block in range(0, size, BLOCK):
                part = slice(block, min(block + BLOCK, size))
                for_hidden.index_copy_(0, rows[here][part], torch.mm(logits[part], weight))
    del buffer, logits  # before the weight gradient is cast
    return losses, for_hidden, for_weight.to(weight.dtype), for_bias


def _forward(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    factor: Tensor | None,
    mean: bool,
    needs: Needs,
    start: int,
    stop: int,
    ignore_index: int,
    smoothing: float,
    z_loss: float,
    max_bytes: int,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Losses [N] without weights (0 for ignored rows), 1 / (sum of weights) or 1, gradients scaled by `factor` [N] and,
    unless in fp16, by that.
    """
    device, wide, total = hidden_states.device, _wide(hidden_states.dtype), len(labels)
    valid = labels != ignore_index
    rows: Tensor | None = None
    if labels.device.type == "cpu":
        rows = valid.nonzero()[:, 0]
        given = labels if len(rows) == total else labels[rows]
        if len(given) and (int(given.min()) < start or int(given.max()) >= stop):
            wrong = given[(given < start) | (given >= stop)][0]
            raise ValueError(
                f"labels: expected {start} <= label < {stop} or ignore_index={ignore_index}, got {int(wrong)}"
            )
        skipped = to_device((~valid).nonzero()[:, 0], device)
        given, rows = to_device(given, device), None if len(rows) == total else to_device(rows, device)
        weights = factor if factor is None or rows is None else factor.index_select(0, rows)
        if weights is None:
            weights = torch.ones((), dtype=wide, device=device).expand(len(given))
            inverse = hidden_states.new_full((), 1 / max(1, len(given)) if mean else 1.0, dtype=wide)
        else:
            inverse = _inverse(weights.sum()) if mean else hidden_states.new_ones((), dtype=wide)
    else:
        given = torch.where(valid, labels, start)
        weights = valid.to(wide) if factor is None else torch.where(valid, factor, 0)
        inverse = _inverse(weights.sum()) if mean else hidden_states.new_ones((), dtype=wide)
    # Divided by thousands of rows, fp16 would lose the gradient before a loss scale arrives.
    scale = weights if hidden_states.dtype == torch.float16 else weights * inverse
    settings = start, smoothing, z_loss, max_bytes
    weight, bias = weight[start:stop], None if bias is None else bias[start:stop]
    with torch.autocast(device.type, enabled=False):
        if labels.is_cuda and total and implementation(hidden_states) == "triton":
            chunk = _chunk(total, -(-len(weight) // 64) * 64 * hidden_states.element_size(), max_bytes)
            losses, *gradients = ragged_losses_and_gradients(
                hidden_states, weight, bias, given, valid, scale, needs, start, smoothing, z_loss, chunk
            )
            return losses, inverse, gradients
        compact, *gradients = losses_and_gradients(hidden_states, weight, bias, given, rows, scale, needs, *settings)
    if rows is None:
        return (
            torch.where(valid, compact, 0) if rows is None and labels.device.type != "cpu" else compact,
            inverse,
            gradients,
        )
    if needs[0] and len(rows):
        gradients[0].index_fill_(0, skipped, 0)
    return compact.new_zeros(total).index_copy_(0, rows, compact), inverse, gradients


def _inverse(total: Tensor) -> Tensor:
    return torch.where(total == 0, 0, 1 / total)


# Registration


@torch.library.custom_op("reca_fast::fused_linear_cross_entropy", mutates_args=())
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """loss, losses per row without weights, 1 / (sum of weights), gradients for hidden states, weight's range, bias."""
    settings = start, stop, ignore_index, smoothing, z_loss, max_bytes
    losses, inverse, gradients = _forward(
        hidden_states, weight, bias, labels, row_weight, mean, (needs[0], needs[1], needs[2]), *settings
    )
    weighted = losses if row_weight is None else torch.where(losses == 0, 0, losses * row_weight)
    return weighted.sum() * inverse, losses, inverse, gradients[0], gradients[1], gradients[2]


@_loss.register_fake
def _(hidden_states, weight, bias, labels, row_weight, mean, needs, start, stop, *_):
    rows, wide = len(hidden_states), _wide(hidden_states.dtype)
    new = hidden_states.new_empty
    return (
        new((), dtype=wide),
        new(rows, dtype=wide),
        new((), dtype=wide),
        *_fake_gradients(hidden_states, weight, needs, start, stop),
    )


def _fake_gradients(hidden_states, weight, needs, start, stop):
    (rows, dim), classes = hidden_states.shape, stop - start
    return (
        hidden_states.new_empty(rows if needs[0] else 0, dim),
        weight.new_empty(classes if needs[1] else 0, dim),
        hidden_states.new_empty(classes if needs[2] else 0, dtype=_wide(hidden_states.dtype)),
    )


@torch.library.custom_op("reca_fast::fused_linear_cross_entropy_rows", mutates_args=())
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
    settings = start, stop, ignore_index, smoothing, z_loss, max_bytes
    return _forward(hidden_states, weight, bias, labels, None, False, (False,) * 3, *settings)[0]


@_rows.register_fake
def _(hidden_states, *_):
    return hidden_states.new_empty(len(hidden_states), dtype=_wide(hidden_states.dtype))


@torch.library.custom_op("reca_fast::fused_linear_cross_entropy_backward", mutates_args=())
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
    """The gradients for d (total) / d (loss of a row) = factor [N]."""
    settings = start, stop, ignore_index, smoothing, z_loss, max_bytes
    wanted = needs[0], needs[1], needs[2]
    gradients = _forward(hidden_states, weight, bias, labels, factor, False, wanted, *settings)[2]
    return gradients[0], gradients[1], gradients[2]


@_backward.register_fake
def _(hidden_states, weight, bias, labels, factor, needs, start, stop, *_):
    return _fake_gradients(hidden_states, weight, needs, start, stop)


def _recompute(ctx, factor: Tensor) -> list[Tensor | None]:
    hidden_states, weight, bias, labels = ctx.saved_tensors[:4]
    return list(_backward(hidden_states, weight, bias, labels, factor, ctx.needs, *ctx.settings))


def _add_in_place(weight: Tensor, start: int, gradient: Tensor) -> bool:
    """Adds to the rows of weight.grad from `start` on, if that is what autograd would do with a dense gradient."""
    total = weight.grad if weight.is_leaf else None
    if total is None or type(total) is not Tensor or type(weight) not in (Tensor, torch.nn.Parameter):
        return False
    if total.dtype != weight.dtype or total.layout != torch.strided or total.requires_grad:
        return False
    if weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None) or type(gradient) is not Tensor:
        return False
    try:
        if not torch._C._will_engine_execute_node(get_gradient_edge(weight).node):
            return False
    except RuntimeError:  # autograd.grad(), which wants the gradient itself
        return False
    total[start : start + len(gradient)].add_(gradient)
    return True


def _finish(ctx, gradients: list) -> list[Tensor | None]:
    """As autograd wants them: dense over the vocabulary, None where nobody asked."""
    _, weight, bias = ctx.saved_tensors[:3]
    start, stop = ctx.settings[:2]
    out = list(gradients)
    if ctx.needs[1] and stop - start < len(weight) and _add_in_place(weight, start, gradients[1]):
        out[1] = None
    elif ctx.needs[1] and stop - start < len(weight):
        out[1] = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        out[1][start:stop] = gradients[1]
    if ctx.needs[2]:
        out[2] = gradients[2].to(bias.dtype)
        if stop - start < len(bias):
            out[2] = torch.zeros_like(bias)
            out[2][start:stop] = gradients[2]
    return [x if need else None for x, need in zip(out, ctx.needs, strict=True)]


def _loss_setup(ctx, inputs, output):
    hidden_states, weight, bias, labels, row_weight, ctx.mean, needs, *settings = inputs
    loss, losses, inverse, *gradients = output
    ctx.mark_non_differentiable(losses, inverse, *gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden_states, weight, bias, labels, row_weight, loss, losses, inverse)
    ctx.needs, ctx.settings = needs, settings
    # Not among the saved tensors: those must not be written to. Detached: an output in ctx would keep itself alive.
    ctx.gradients = [x.detach() for x in gradients]


def _loss_vjp(ctx, upstream, *_):
    if upstream is None:
        return (None,) * 13
    if torch.is_grad_enabled():
        raise RuntimeError("fused_linear_cross_entropy has no second derivative (create_graph=True)")
    _, _, _, _, row_weight, loss, losses, inverse = ctx.saved_tensors
    gradients, ctx.gradients = ctx.gradients, None
    if gradients is None:  # handed out by an earlier backward pass
        factor = (upstream * inverse).expand(len(losses)) if row_weight is None else upstream * inverse * row_weight
        gradients = _recompute(ctx, factor)
    else:
        half = gradients[0].dtype == torch.float16
        for number, gradient in enumerate(gradients):
            factor = upstream * inverse if half else upstream
            if not ctx.needs[number]:
                continue
            if type(gradient) is not Tensor:  # traced
                gradients[number] = (gradient * factor).to(gradient.dtype)
            else:
                _scale_in_place(gradient, factor)
    for_row_weight = None
    if ctx.needs_input_grad[4]:
        kept = losses - loss if ctx.mean else losses
        ignored = ctx.saved_tensors[3].to(losses.device, non_blocking=True) == ctx.settings[2]
        for_row_weight = (torch.where(ignored, 0, kept) * (inverse * upstream)).to(row_weight.dtype)
    for_hidden, for_weight, for_bias = _finish(ctx, gradients)
    return for_hidden, for_weight, for_bias, None, for_row_weight, *(None,) * 8


_loss.register_autograd(_loss_vjp, setup_context=_loss_setup)


def _rows_setup(ctx, inputs, output):
    hidden_states, weight, bias, labels, *ctx.settings = inputs
    ctx.save_for_backward(hidden_states, weight, bias, labels)


def _rows_vjp(ctx, upstream):
    if torch.is_grad_enabled():
        raise RuntimeError("fused_linear_cross_entropy has no second derivative (create_graph=True)")
    ctx.needs = list(ctx.needs_input_grad[:3])
    return *_finish(ctx, _recompute(ctx, upstream)), *(None,) * 7


_rows.register_autograd(_rows_vjp, setup_context=_rows_setup)


# Public function


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
        weight: [V, D], same dtype and device. Under autocast both are cast to autocast's dtype.
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
    if hidden_states.dim() != 2:
        raise ValueError(f"hidden_states: expected [N, D], got {list(hidden_states.shape)}")
    rows, dim = hidden_states.shape
    if weight.dim() != 2 or weight.shape[1] != dim or weight.shape[0] == 0:
        raise ValueError(f"weight: expected [V, {dim}] with V > 0, got {list(weight.shape)}")
    vocabulary = weight.shape[0]
    shapes = {"labels": (labels, rows), "bias": (bias, vocabulary), "row_weight": (row_weight, rows)}
    for name, (x, size) in shapes.items():
        if x is not None and tuple(x.shape) != (size,):
            raise ValueError(f"{name}: expected [{size}], got {list(x.shape)}")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels: expected torch.int64, got {labels.dtype}")
    if row_weight is not None and row_weight.is_complex():
        raise ValueError(f"row_weight: expected real numbers, got {row_weight.dtype}")
    device = hidden_states.device
    for name, x in {"hidden_states": hidden_states, "weight": weight, "bias": bias}.items():
        if x is not None and not x.dtype.is_floating_point:
            raise ValueError(f"{name}: expected floating-point numbers, got {x.dtype}")
    for name, x in {"weight": weight, "bias": bias, "row_weight": row_weight, "labels": labels}.items():
        if x is not None and x.device != device and not (name == "labels" and x.device.type == "cpu"):
            raise ValueError(f"{name}: expected a tensor on {device}, got {x.device}")
    start, stop = (0, vocabulary) if vocab_range is None else _range(vocab_range, vocabulary)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing}")
    if not 0 <= z_loss < float("inf"):
        raise ValueError(f"z_loss: expected a number >= 0, got {z_loss}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    if max_logits_bytes <= 0:
        raise ValueError(f"max_logits_bytes: expected a positive number, got {max_logits_bytes}")
    if torch.is_autocast_enabled(device.type) and torch.float64 not in (hidden_states.dtype, weight.dtype):
        dtype = torch.get_autocast_dtype(device.type)
        hidden_states, weight = hidden_states.to(dtype), weight.to(dtype)
    if weight.dtype != hidden_states.dtype:
        raise ValueError(f"weight: expected {hidden_states.dtype} like hidden_states, got {weight.dtype}")
    row_weight = None if row_weight is None else row_weight.to(_wide(hidden_states.dtype))
    settings = start, stop, ignore_index, float(label_smoothing), float(z_loss), int(max_logits_bytes)
    if reduction == "none":
        losses = _rows(hidden_states, weight, bias, labels, *settings)
        return losses if row_weight is None else torch.where(losses == 0, 0, losses * row_weight)
    grad = torch.is_grad_enabled()
    needs = [grad and x is not None and x.requires_grad for x in (hidden_states, weight, bias)]
    return _loss(hidden_states, weight, bias, labels, row_weight, reduction == "mean", needs, *settings)[0]


def _range(vocab_range: tuple[int, int], vocabulary: int) -> tuple[int, int]:
    expected = f"vocab_range: expected (start, stop) with 0 <= start < stop <= {vocabulary}, got {vocab_range}"
    if len(vocab_range) != 2 or not all(isinstance(x, int) for x in vocab_range):
        raise ValueError(expected)
    start, stop = vocab_range
    if not 0 <= start < stop <= vocabulary:
        raise ValueError(expected)
    return start, stop
