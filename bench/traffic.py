"""Bytes, launches and FLOPs of a piece of code, counted without a GPU.

Triton kernels run in the interpreter and every load and store is counted, masked lanes excluded. Whatever else runs
counts per ATen operation: its tensor inputs and outputs once, views for nothing. Caches are ignored, so this is what a
run with cold caches asks of memory; `unique_bytes` counts an address once per kernel, which is what a perfect cache
would leave.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_FREE = {
    *("view", "_unsafe_view", "t", "transpose", "permute", "slice", "select", "expand", "unsqueeze", "squeeze"),
    *("detach", "alias", "as_strided", "split", "split_with_sizes", "chunk", "unbind", "reshape", "lift_fresh"),
    *("_reshape_alias", "narrow", "diagonal", "empty", "empty_like", "new_empty", "empty_strided", "unfold"),
    *("new_empty_strided", "sym_size", "is_same_size", "_local_scalar_dense", "device", "unflatten", "prim_layout"),
    *("promote_types", "result_type"),
}
_CREATES = {
    *("zero", "fill", "zeros", "new_zeros", "zeros_like", "ones_like", "full", "normal", "randn", "randn_like", "rand"),
    *("arange", "full_like", "ones", "scalar_tensor", "randint", "new_full", "new_ones"),
}
_GATHERS = {"index", "index_select", "embedding", "gather"}
_MATMULS = {"mm", "addmm", "bmm", "baddbmm", "convolution"}


@dataclass
class Traffic:
    """What was counted. Matrix products count as FLOPs and, apart, as `matmul_bytes`; they are library calls."""

    launches: int = 0  # kernels, matrix products excluded
    bytes_read: int = 0
    bytes_written: int = 0
    unique_bytes: int = 0
    matmuls: int = 0
    matmul_bytes: int = 0
    flops: float = 0.0  # of matrix products, in torch and in kernels
    kernels: list[str] = field(default_factory=list)
    interpreted: int = 0  # launches of Triton kernels among them

    @property
    def bytes(self) -> int:
        return self.bytes_read + self.bytes_written


class _EagerCounter(TorchDispatchMode):
    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "reca_fast":  # count what is inside
            with self:
                return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
        with self:  # inside custom ops those made of others arrive whole: `matmul` for `mm`, a `to` that does nothing
            if (whole := func.decompose(*args, **kwargs)) is not NotImplemented:
                return whole
        out = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        base = name.rstrip("_")
        if base in _FREE:
            return out
        ins = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if not func._schema.is_mutable and outs and all(any(y is x for x in ins) for y in outs):
            return out  # e.g. a cast to the dtype it has
        read, written = sum(map(_size, ins)), sum(map(_size, outs))
        if base in _CREATES:
            read = 0
        elif base in _GATHERS:
            read = written + sum(map(_size, ins[1:]))
        elif base in ("index_put", "_index_put_impl"):
            read, written = sum(map(_size, ins[1:])), _size(ins[-1])
        if base in _MATMULS:
            self.traffic.matmuls += 1
            self.traffic.matmul_bytes += read + written
            self.traffic.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
            return out
        self.traffic.launches += 1
        self.traffic.kernels.append(name)
        self.traffic.bytes_read += read
        self.traffic.bytes_written += written
        self.traffic.unique_bytes += read + written
        return out


def _size(x: Tensor) -> int:
    return x.numel() * x.element_size()


@contextmanager
def counting() -> Iterator[Traffic]:
    """Count what runs inside; Triton kernels are interpreted on CPU tensors. Backward passes started inside count."""
    traffic = Traffic()
    with ExitStack() as stack:
        try:
            from reca_fast.kernels.common.interpreter import interpreting

            stack.enter_context(interpreting())
            stack.enter_context(_count_kernels(traffic))
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
        stack.enter_context(_EagerCounter(traffic))
        yield traffic


@contextmanager
def _count_kernels(traffic: Traffic) -> Iterator[None]:
    from triton.runtime import interpreter as upstream

    builder, executor = upstream.InterpreterBuilder, upstream.GridExecutor
    names = ("create_masked_load", "create_masked_store", "create_atomic_rmw", "create_dot")
    load, store, atomic, dot = before = tuple(getattr(builder, name) for name in names)
    execute = executor.__call__
    touched: dict[str, list[np.ndarray]] = {}

    def note(kind: str, pointers, mask) -> int:
        live = np.broadcast_to(mask.data, pointers.data.shape)
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses = np.asarray(pointers.data)[live].ravel()
        touched.setdefault(f"{kind}{width}", []).append(addresses)
        return addresses.size * width

    def counted_load(self, pointers, mask, *rest):
        traffic.bytes_read += note("load", pointers, mask)
        return load(self, pointers, mask, *rest)

    def counted_store(self, pointers, value, mask, *rest):
        traffic.bytes_written += note("store", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def counted_atomic(self, operation, pointers, value, mask, *rest):
        traffic.bytes_read += note("load", pointers, mask)
        traffic.bytes_written += note("store", pointers, mask)
        return atomic(self, operation, pointers, value, mask, *rest)

    def counted_dot(self, a, b, *rest):
        traffic.flops += 2.0 * a.data.size * b.data.shape[-1]
        return dot(self, a, b, *rest)

    def counted_execute(self, *args, **kwargs):
        traffic.launches += 1
        traffic.kernels.append(self.fn.__name__)
        traffic.interpreted += 1
        touched.clear()
        # The interpreter copies arguments to and fro; those copies are not part of the kernel.
        with torch.utils._python_dispatch._disable_current_modes():
            execute(self, *args, **kwargs)
        for kind, parts in touched.items():
            width = int(kind.lstrip("loadstre"))
            traffic.unique_bytes += len(np.unique(np.concatenate(parts))) * width

    counted = (counted_load, counted_store, counted_atomic, counted_dot)
    for name, function in zip(names, counted, strict=True):
        setattr(builder, name, function)
    executor.__call__ = counted_execute
    try:
        yield
    finally:
        for name, function in zip(names, before, strict=True):
            setattr(builder, name, function)
        executor.__call__ = execute
