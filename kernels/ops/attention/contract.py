"""Variable-length grouped-query attention behind one function, whatever library computes it.

A backend is one of the libraries that can compute it (backends.py). All of them keep one contract, that of flash-attn's
varlen interface: the queries of segment i attend to the keys of segment i and to nothing else. With `causal`, the last
query of a segment sees all of its keys, the one before it all but the last, and so on. So a segment may have more keys
than queries, its queries being those of its last tokens.

A query may see no key: its segment has none, or with `causal` the segment has fewer keys than queries, whose first ones
then see none. The output of such a query is 0, so is its gradient, and it adds nothing to the gradients of keys and
values. A key that no query sees has a gradient of 0.
"""

from itertools import pairwise

import torch
from torch import Tensor

from ..common.arguments import expect, expect_floating, expect_tensors
from ..common.implementation import gpu_assumed
from .backends import BACKENDS
from .segments import Varlen, blind, bounds


def available_backends(device: torch.device | str, dtype: torch.dtype) -> dict[str, str | None]:
    """Every backend, best first: its name -> None when it can compute there, else the reason why not."""
    device = torch.device(device)
    return {name: backend.missing(device, dtype) for name, backend in BACKENDS.items()}


def choose_backend(name: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The backend for `name`. "auto" takes the first that can compute there; on a CPU that is always sdpa.

    Raises:
        ValueError: `name` is unknown, or was asked for and cannot run there (with the reason).
    """
    device = torch.device(device)
    if name == "auto" and device.type == "cpu":
        return "torch" if gpu_assumed() and dtype in (torch.float16, torch.bfloat16) else "sdpa"
    if name == "auto":  # asking imports a library, so nobody is asked after the first that can compute
        return next(known for known, backend in BACKENDS.items() if backend.missing(device, dtype) is None)
    if name not in BACKENDS:
        raise ValueError(f"attention={name!r}: expected one of {['auto', *BACKENDS]}")
    reason = None if gpu_assumed() else BACKENDS[name].missing(device, dtype)
    if reason is not None:
        raise ValueError(f"attention={name!r} cannot run on {device} in {dtype}: {reason}")
    return name


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, segments: Varlen, *, backend: str = "sdpa") -> Tensor:
    """softmax(q k^T / sqrt(D)) v inside each segment.

    Args:
        q: [Tq, H, D], floating-point.
        k, v: [Tk, Hkv, D] in the dtype of q, with H a multiple of Hkv; query head h reads key/value head
            h // (H / Hkv).
        segments: where each segment begins, and whether it is causal.
        backend: a name from `choose_backend` (never "auto").

    Returns:
        [Tq, H, D] in the dtype of q.

    Raises:
        ValueError: a shape, dtype, device or name that does not fit; the message starts with the argument's name.
    """
    _check(q, k, v, segments, backend)
    if not q.numel() or not segments.max_seqlen_q or not segments.max_seqlen_k:
        return blind(q, k, v)  # some kernels cannot launch on nothing
    # All of them expect the numbers of a head side by side.
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    return BACKENDS[backend].attend(q, k, v, segments)


def _check(q: Tensor, k: Tensor, v: Tensor, segments: Varlen, backend: str) -> None:
    expect_tensors(q=q, k=k, v=v)
    expect(q.dim() == 3 and q.shape[1] > 0 and q.shape[2] > 0, "q", "[Tq, H, D] with H and D > 0", q.shape)
    expect_floating(q.device, q=q, k=k, v=v)
    if k.dim() != 3 or not k.shape[1] or q.shape[1] % k.shape[1] or k.shape != v.shape or q.shape[2] != k.shape[2]:
        raise ValueError(
            f"k, v: expected two [Tk, Hkv, {q.shape[2]}] with Hkv dividing {q.shape[1]}, "
            f"got {list(k.shape)} and {list(v.shape)}"
        )
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise ValueError(f"{name}: expected the dtype of q, {q.dtype}, got {x.dtype}")
    if not isinstance(segments, Varlen):
        raise ValueError(f"segments: expected a Varlen, got {type(segments).__name__}")
    for name, x in (("cu_seqlens_q", segments.cu_seqlens_q), ("cu_seqlens_k", segments.cu_seqlens_k)):
        expect_tensors(**{name: x})
        if x.dim() != 1 or x.dtype != torch.int32 or x.device != q.device:
            wanted = f"int32 [segments + 1] on {q.device}"
            raise ValueError(f"{name}: expected {wanted}, got {x.dtype} {list(x.shape)} on {x.device}")
    for name, longest in (("max_seqlen_q", segments.max_seqlen_q), ("max_seqlen_k", segments.max_seqlen_k)):
        if not isinstance(longest, int | torch.SymInt) or longest < 0:
            raise ValueError(f"{name}: expected the longest length as an int >= 0, got {longest!r}")
    if not isinstance(segments.causal, bool):
        raise ValueError(f"causal: expected a bool, got {segments.causal!r}")
    if type(segments.cu_seqlens_q) is Tensor and q.device.type == "cpu" and not torch.compiler.is_compiling():
        # On a CPU looking at the offsets costs nothing; not all backends do it themselves.
        for name, offsets, longest in zip(
            ("max_seqlen_q", "max_seqlen_k"), bounds(q, k, *segments[:2]), segments[2:4], strict=True
        ):
            least = max((b - a for a, b in pairwise(offsets)), default=0)
            if longest < least:
                raise ValueError(f"{name}: expected at least {least}, the longest length, got {longest}")
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {list(BACKENDS)}, got {backend!r}")
