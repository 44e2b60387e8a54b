"""What a step computes and moves, operation by operation."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from .tracker import is_wrapper

FREE = ("empty", "new_empty", "detach", "alias", "lift_fresh", "_local_scalar_dense", "set_", "resize")
"""Beginnings of the names of operations that move nothing."""
PICKED = ("index", "embedding", "gather", "index_select")
"""Operations that read of their first argument only as much as they give back."""


class Launch(NamedTuple):
    """One operation on the device."""

    flops: float  # of matrix products, a multiply-add being 2
    nbytes: float  # read and written
    dtype: torch.dtype  # of the numbers that are multiplied


@dataclass(frozen=True)
class Work:
    """All that a step does."""

    launches: Counter[Launch]
    to_device: float  # bytes copied from host memory
    to_host: float  # bytes copied to host memory

    def __add__(self, other: "Work") -> "Work":
        launches = self.launches + other.launches
        return Work(launches, self.to_device + other.to_device, self.to_host + other.to_host)

    def __mul__(self, times: int) -> "Work":
        launches = Counter({launch: count * times for launch, count in self.launches.items()})
        return Work(launches, self.to_device * times, self.to_host * times)

    @property
    def flops(self) -> float:
        return sum(launch.flops * times for launch, times in self.launches.items())


class WorkLog(TorchDispatchMode):
    """Writes down every operation inside its context. It counts what stands on the device; a copy between host and
    device is counted as a transfer.

    Args:
        is_on_host: whether a tensor's memory is the host's.
    """

    def __init__(self, is_on_host: Callable[[Tensor], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._is_on_host = is_on_host
        self._launches: Counter[Launch] = Counter()
        self._moved = {"to_device": 0.0, "to_host": 0.0}

    @property
    def work(self) -> Work:
        """What was done so far."""
        return Work(self._launches, **self._moved)

    def launches(self) -> Counter[Launch]:
        """The operations so far, to be compared with later ones."""
        return self._launches.copy()

    def add(self, launches: Counter[Launch]) -> None:
        """Count operations as if they had been done again."""
        self._launches.update(launches)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(is_wrapper(kind) for kind in types):
            return NotImplemented
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._note(func, args, kwargs, result)
        return result

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name = func._schema.name.rpartition("::")[2]
        given = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_iter(result) if isinstance(x, Tensor)]
        if name.startswith(FREE) or _is_view(func, given, made):
            return
        if name in ("copy_", "_foreach_copy_") and self._is_transfer(args):
            return
        packet = func._overloadpacket
        formula = FORMULAS.get(packet) or flop_registry.get(packet)
        flops = float(formula(*args, **kwargs, out_val=result)) if formula is not None else 0.0
        read = made if name in PICKED else given
        nbytes = sum(map(_bytes, read)) + sum(map(_bytes, made))
        dtype = next((x.dtype for x in given if x.is_floating_point()), torch.int8)
        if name in ("_int_mm",):
            dtype = torch.int8
        self._launches[Launch(flops, nbytes, dtype)] += 1

    def _is_transfer(self, args: tuple[Any, ...]) -> bool:
        """Count a copy between host and device as such; False for one that stays on its side."""
        pairs = zip(tree_iter(args[0]), tree_iter(args[1]), strict=False)
        found = False
        for to, source in pairs:
            ends = self._is_on_host(source), self._is_on_host(to)
            if ends[0] != ends[1]:
                self._moved["to_device" if ends[0] else "to_host"] += _bytes(to)
                found = True
        return found


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _is_view(func: Any, given: list[Tensor], made: list[Tensor]) -> bool:
    """Whether it only looks at memory: nothing is changed, and nothing made, or what is given back lies in what was."""
    if func._schema.is_mutable:
        return False
    known = {x.untyped_storage()._cdata for x in given}
    return all(x.untyped_storage()._cdata in known for x in made)


def _pairs(given: Mapping[str, Any]) -> float:
    """Pairs of query and key in a call of attention: exact where the offsets are known, else as if all segments of keys
    were as long as the longest. Under the causal rule the last query of a segment sees all m keys of it, the first of n
    sees m - (n - 1), and kernels leave out what is not seen.
    """
    queries, cu_q, cu_k = len(given["query"]), given["cu_seq_q"], given["cu_seq_k"]
    causal = given.get("is_causal") or list(given.get("window_size") or ()) == [-1, 0]
    if isinstance(cu_q, FakeTensor) or cu_q.is_meta:
        return float(queries * given["max_k"]) / (2 if causal else 1)
    with _disable_current_modes():  # real offsets have values even where every other tensor is fake
        n, m = cu_q.diff().double(), cu_k.diff().double()
        return float((n * m - (n * (n - 1) / 2 if causal else 0)).sum())


def _counted(operation: Any, products: int) -> Callable[..., int]:
    """The count of an operation of attention that multiplies so many matrices of queries by keys."""
    names = [argument.name for argument in operation.default._schema.arguments]

    def count(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        given = dict(zip(names, args, strict=False)) | kwargs
        _, heads, width = given["query"].shape
        return int(2 * products * _pairs(given) * heads * width)

    return count


def _convolution_backward_flops(*args: Any, **__: Any) -> int:
    """Each gradient takes what the forward pass takes. torch counts that of a weight as if every channel saw all."""
    grad, x, weight, _, _, _, _, transposed, _, _, wanted = args
    pixels = x if transposed else grad  # those that a kernel stands over
    passed = 2 * weight.numel() * pixels.shape[0] * math.prod(pixels.shape[2:])
    return int(passed * sum(wanted[:2]))


def _formulas() -> dict[Any, Callable[..., int]]:
    """What torch counts otherwise: some of its releases count its own varlen attention as nothing, others read numbers;
    convolutions in groups.
    """
    import torch.nn.attention.varlen  # which enters the operations

    ops = torch.ops.torch_attn
    return {
        ops._varlen_attn: _counted(ops._varlen_attn, 2),
        ops._varlen_attn_backward: _counted(ops._varlen_attn_backward, 5),
        torch.ops.aten.convolution_backward: _convolution_backward_flops,
    }


FORMULAS = _formulas()
