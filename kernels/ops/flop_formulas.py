"""FLOPs of the operations that contain matrix products, for `torch.utils.flop_counter.FlopCounterMode`.

The counter does not look into custom operations; without these it would count 0 for them. What depends on values that
fake tensors lack is counted at its most: every row of the cross-entropy as if none were ignored, and, on fake tensors
only, attention as if all tokens were one segment.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import register_flop_formula


def _product(rows: int, weight: Sequence[int]) -> int:
    """rows x weight, each multiply-add as 2."""
    return 2 * rows * prod(weight)


# Each takes the shapes of the operation's tensors and its other arguments as they are.


def _cross_entropy(hidden, weight, bias, labels, row_weight, mean, needs, start, stop, *_, **__):
    return _product(hidden[0], (stop - start, weight[1])) * (1 + needs[0] + needs[1])


def _cross_entropy_rows(hidden, weight, bias, labels, start, stop, *_, **__):
    return _product(hidden[0], (stop - start, weight[1]))


def _cross_entropy_backward(hidden, weight, bias, labels, factor, needs, start, stop, *_, **__):
    return _product(hidden[0], (stop - start, weight[1])) * (1 + needs[0] + needs[1])


def _residual_block(hidden, modulation, ln_weight, ln_bias, weight, *_, **__):
    return 2 * _product(hidden[0], weight)


def _residual_block_backward(grad, hidden, modulation, ln_weight, ln_bias, weight, *rest, **_):
    need = rest[-1]
    return _product(hidden[0], weight) * (2 + need[4] + need[6])


def _patch_embed(images, weight, *_, out_shape, **__):
    return _product(out_shape[0], weight)


def _patch_embed_backward(grad, images, ids, positions, bias_dtype, position_dtype, needed, *_, out_shape, **__):
    return _product(grad[0], out_shape[0]) if needed[0] else 0


def _pairs(cu_q: Tensor, cu_k: Tensor, queries: int, keys: int, causal: bool) -> int:
    """Query-key pairs; under the causal rule the last query of a segment sees all its keys."""
    if isinstance(cu_q, FakeTensor) or cu_q.is_meta:
        segments = [(queries, keys)]
    else:
        with _disable_current_modes():  # real offsets have values also where everything else is fake
            segments = list(zip(cu_q.diff().tolist(), cu_k.diff().tolist(), strict=True))
    return sum(n * m - (n * (n - 1) // 2 if causal else 0) for n, m in segments)


# These take the tensors themselves.


def _attention(q, k, v, cu_q, cu_k, causal, **_):
    pairs = _pairs(cu_q, cu_k, len(q), len(k), causal)
    return 2 * pairs * q.shape[1] * (q.shape[2] + v.shape[2])


def _attention_backward(grad, q, k, v, out, lse, cu_q, cu_k, causal, **_):
    """The scores again, then the gradients of the probabilities, q, k and v."""
    pairs = _pairs(cu_q, cu_k, len(q), len(k), causal)
    return 2 * pairs * q.shape[1] * (3 * q.shape[2] + 2 * v.shape[2])


def register() -> None:
    """To be called once, when all operations are defined."""
    ops = torch.ops.reca_fast
    register_flop_formula(ops.fused_linear_cross_entropy)(_cross_entropy)
    register_flop_formula(ops.fused_linear_cross_entropy_rows)(_cross_entropy_rows)
    register_flop_formula(ops.fused_linear_cross_entropy_backward)(_cross_entropy_backward)
    register_flop_formula(ops.mar_residual_block)(_residual_block)
    register_flop_formula(ops.mar_residual_block_backward)(_residual_block_backward)
    register_flop_formula(ops.blur_patch_embed)(_patch_embed)
    register_flop_formula(ops.blur_patch_embed_backward)(_patch_embed_backward)
    register_flop_formula(ops.varlen_attention_cpu, get_raw=True)(_attention)
    register_flop_formula(ops.varlen_attention_cpu_backward, get_raw=True)(_attention_backward)
