"""Variable-length grouped-query attention behind one function, whatever library computes it.

Contract (the same for every backend, and what flash-attn's varlen interface means): the queries of segment i attend to
the keys of segment i and to nothing else. With `causal`, the last query of a segment sees all of its keys, the one
before it all but the last, and so on (aligned at the bottom right), so a segment may have more keys than queries: its
own rows come last.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .attention_backends import BACKENDS, Backend
from .transfer import to_device


class Varlen(NamedTuple):
    """Segments of one attention call. The longest lengths are host values, which the flash kernels need; xformers and
    sdpa want every length on the host, so on a GPU these two wait for it.
    """

    cu_seqlens_q: Tensor  # int32 [n + 1], device of the queries
    cu_seqlens_k: Tensor  # int32 [n + 1]
    max_seqlen_q: int
    max_seqlen_k: int
    causal: bool

    @classmethod
    def from_lengths(cls, q_lengths: list[int], k_lengths: list[int], *, causal: bool) -> "Varlen":
        """Segments with these numbers of queries and keys, on the CPU."""

        def cumulate(lengths: list[int]) -> Tensor:
            return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)

        longest_q, longest_k = max(q_lengths, default=0), max(k_lengths, default=0)
        return cls(cumulate(q_lengths), cumulate(k_lengths), longest_q, longest_k, causal)

    def to(self, device: torch.device | str) -> "Varlen":
        """The same segments with their offsets on `device`."""
        q, k = to_device(self.cu_seqlens_q, device), to_device(self.cu_seqlens_k, device)
        return self._replace(cu_seqlens_q=q, cu_seqlens_k=k)


def available_backends(device: torch.device | str, dtype: torch.dtype) -> dict[str, str | None]:
    """Backend name -> None when it can run there, else the reason why not; in order of preference."""
    device = torch.device(device)
    return {name: backend.missing(device, dtype) for name, backend in BACKENDS.items()}


def choose_backend(name: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The backend for `name`; "auto" takes the first that can run (on a CPU always sdpa, the only fast one there).

    Raises:
        ValueError: `name` is unknown, or was asked for and cannot run there (with the reason).
    """
    found = available_backends(device, dtype)
    if name == "auto" and torch.device(device).type == "cpu":
        return "sdpa"
    if name == "auto":
        return next(backend for backend, reason in found.items() if reason is None)
    if name not in found:
        raise ValueError(f"attention={name!r}: expected one of {['auto', *found]}")
    if found[name] is not None:
        raise ValueError(f"attention={name!r} cannot run on {device} in {dtype}: {found[name]}")
    return name


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, segments: Varlen, *, backend: str = "sdpa") -> Tensor:
    """softmax(q k^T / sqrt(D)) v inside each segment.

    Args:
        q: [Tq, H, D].
        k, v: [Tk, Hkv, D] with H a multiple of Hkv; query head h reads key/value head h // (H / Hkv).
        segments: where each segment begins, and whether it is causal.
        backend: a name from `choose_backend` (never "auto").

    Returns:
        [Tq, H, D] in the dtype of q.
    """
    if q.shape[1] % k.shape[1] or k.shape != v.shape or q.shape[2] != k.shape[2]:
        raise ValueError(
            f"k, v: expected two [Tk, Hkv, {q.shape[2]}] with Hkv dividing {q.shape[1]}, "
            f"got {list(k.shape)} and {list(v.shape)}"
        )
    chosen: Backend = BACKENDS[backend]
    return chosen.run(q, k, v, *segments)
