"""Recomputation that keeps some results: a block runs again in the backward pass, without the products that were kept.

Two modes of torch's dispatcher do it, below autograd: one notes the results of chosen operations while a block runs,
the other hands them out in place of the same operations when it runs again. An operation is named by what it is and its
number in the block (the third matrix product), which is the same in both runs.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_map_only, tree_unflatten
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn
from torch.utils.flop_counter import flop_registry

from .identity import identity
from .offload import returned, sent


class Name(NamedTuple):
    """Which operation of a block."""

    operation: str  # "aten.mm"
    number: int  # how many of these come before it in the block


@cache
def is_product(operation: Any) -> bool:
    """Whether an operation of torch's dispatcher is dear: a matrix product, attention, a convolution."""
    packet = getattr(operation, "_overloadpacket", operation)
    return packet in flop_registry or "attn" in str(packet) or "attention" in str(packet)


class Numbering:
    """Names the products of one run of a block, in their order."""

    def __init__(self) -> None:
        self._met: Counter[str] = Counter()

    def __call__(self, operation: Any) -> Name | None:
        """The name of this call; None for what is no product."""
        if not is_product(operation):
            return None
        kind = str(getattr(operation, "_overloadpacket", operation))
        self._met[kind] += 1
        return Name(kind, self._met[kind] - 1)


class _Keep(TorchDispatchMode):
    """Notes the results of the named operations."""

    def __init__(self, names: frozenset[Name]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names, self.results, self._number = names, list[Any](), Numbering()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._number(func) in self.names:
            self.results.append(tree_map_only(Tensor, Tensor.detach, out))
        return out


class _Give(TorchDispatchMode):
    """Hands out, once, what `_Keep` noted, and skips what was written into it since: it holds that already."""

    def __init__(self, keep: _Keep) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._keep, self._number, self._given = keep, Numbering(), set[StorageWeakRef]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._number(func) in self._keep.names:
            if not self._keep.results:
                raise RuntimeError("A block's kept results serve one backward pass, and this is the second.")
            out = tree_map_only(Tensor, Tensor.detach, tree_map(returned, self._keep.results.pop(0)))
            self._given |= {identity(x) for x in tree_leaves(out) if isinstance(x, Tensor)}
            return out
        if self._given and (written := writes_into(func, args)) is not None and written in self._given:
            return args[0]
        return func(*args, **(kwargs or {}))


def writes_into(operation: Any, args: Sequence[Any]) -> StorageWeakRef | None:
    """The memory that an operation in place writes into; None for other operations."""
    schema = getattr(operation, "_schema", None)
    in_place = schema is not None and schema.is_mutable and bool(args) and isinstance(args[0], Tensor)
    return identity(args[0]) if in_place else None


def run_keeping(forward: Callable[..., Any], names: frozenset[Name], *args: Any, **kwargs: Any) -> Any:
    """Call a block so that its backward pass has its inputs and the results of the named operations, and computes the
    rest again. Values and gradients are those of a plain call to the last bit, where operations are deterministic.
    """
    leaves, form = tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def call(*tensors: Tensor) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        again, named = tree_unflatten(filled, form)
        return forward(*again, **named)

    inputs = [leaves[place] for place in places]
    for place in places:
        leaves[place] = None  # torch holds them, where hooks on what is kept can see them
    keep = _Keep(names)
    contexts = partial(_contexts, keep) if names else noop_context_fn
    out = checkpoint(call, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    keep.results = [tree_map_only(Tensor, sent, result) for result in keep.results]  # no earlier: some are added to
    return out


def _contexts(keep: _Keep) -> tuple[_Keep, _Give]:
    return keep, _Give(keep)


def run_keeping_compiled(forward: Callable[..., Any], names: frozenset[Name], *args: Any, **kwargs: Any) -> Any:
    """`run_keeping` for code inside torch.compile, which splits what is kept from what is computed again by itself."""
    contexts = partial(_torch_contexts, names)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts, **kwargs)


def _torch_contexts(names: frozenset[Name]) -> Any:
    number = Numbering()
    return create_selective_checkpoint_contexts(lambda context, operation, *args, **kwargs: number(operation) in names)
