"""What attention has to move and multiply, and the FLOPs of the operation that computes it on a CPU."""

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from ..common.registry import Cost


def cost(
    *, pictures: int, queries: int, keys: int, heads: int, kv_heads: int, head_dim: int, itemsize: int = 2
) -> Cost:
    """For `pictures` segments of `queries` and `keys` tokens each, where every query sees every key of its segment.

    Forward: q, k and v are read and the result is written; two products. Backward: those four and the gradient are
    read and three gradients are written; five products, since the scores are computed again.
    """
    rows, shared = queries * heads * head_dim, keys * kv_heads * head_dim
    numbers = pictures * ((2 * rows + 2 * shared) + (4 * rows + 4 * shared))
    return Cost(itemsize * numbers, 7 * 2.0 * pictures * queries * keys * heads * head_dim)


def _pairs(cu_q: Tensor, cu_k: Tensor, queries: int, keys: int, causal: bool) -> int:
    """How many pairs of a query and a key see each other.

    With `causal`, the last query of a segment sees all its keys and each one before it one key fewer. Fake tensors have
    no values, so with fake offsets all tokens count as one segment, which is the most that it can be.
    """
    if isinstance(cu_q, FakeTensor) or cu_q.is_meta:
        segments = [(queries, keys)]
    else:
        with _disable_current_modes():  # real offsets have values even where every other tensor is fake
            segments = list(zip(cu_q.diff().tolist(), cu_k.diff().tolist(), strict=True))
    return sum(n * m - (n * (n - 1) // 2 if causal else 0) for n, m in segments)


def cpu_flops(q, k, v, cu_q, cu_k, causal, **_) -> int:
    """The scores and the weighted sum of the values."""
    pairs = _pairs(cu_q, cu_k, len(q), len(k), causal)
    return 2 * pairs * q.shape[1] * (q.shape[2] + v.shape[2])


def cpu_backward_flops(grad, q, k, v, out, lse, cu_q, cu_k, causal, **_) -> int:
    """The scores again, then the gradients of the probabilities, of q, of k and of v."""
    pairs = _pairs(cu_q, cu_k, len(q), len(k), causal)
    return 2 * pairs * q.shape[1] * (3 * q.shape[2] + 2 * v.shape[2])
