"""What a block computes and what its backward pass needs, found by running it once and watching."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .identity import identity
from .keeping import Name, Numbering, writes_into


@dataclass(frozen=True)
class Product:
    """A product that the backward pass would have to compute again if its result were not kept."""

    name: Name
    label: str  # for people: the weight's name without its last part, or "attention"
    flops: int
    bytes: int  # of the result


@dataclass(frozen=True)
class BlockCost:
    """One run of one block."""

    rows: int  # bytes of its results, which are the next block's inputs and kept in any case
    products: tuple[Product, ...]  # in the order in which they run
    everything: int  # bytes that the backward pass reads when nothing is computed again, inputs and weights left out


def block_cost(
    block: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> BlockCost:
    """Run a block once, with gradients but keeping nothing, and list its products.

    A product counts where its result is needed again: not behind the last tensor that the backward pass reads, for
    there the second run stops. A result that is read and then overwritten cannot be kept, and does not count either.
    Whoever counts operations or memory from outside (modes of torch's dispatcher) does not see this run.

    Args:
        forward: calls the block.
        args, kwargs: as the block is called with them.
    """
    given = {identity(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
    weights = {identity(p): name for name, p in block.named_parameters()}
    watch = _Watch(weights)
    read: dict[StorageWeakRef, int] = {}

    def note(tensor: Tensor) -> None:
        watch.saw_saved()
        if identity(tensor) not in given | weights.keys():
            read[identity(tensor)] = tensor.untyped_storage().nbytes()

    with _disable_current_modes(), torch.enable_grad(), saved_tensors_hooks(note, _never), watch:
        results = [x for x in tree_leaves(forward(*args, **kwargs)) if isinstance(x, Tensor)]
    return BlockCost(
        rows=sum(x.untyped_storage().nbytes() for x in results),
        products=watch.products(),
        everything=sum(read.values()),
    )


def _never(nothing: None) -> Tensor:
    raise AssertionError("nobody goes back through this run")


class _Watch(TorchDispatchMode):
    """Lists products in the order in which they run, and knows which of them come before the last tensor saved."""

    def __init__(self, weights: dict[StorageWeakRef, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._labels, self._number = dict(weights), Numbering()
        self._met: list[Product] = []
        self._needed = 0  # so many products are before the last tensor that the backward pass reads
        self._results: dict[StorageWeakRef, Product] = {}
        self._touched, self._spoilt = set[StorageWeakRef](), set[Name]()

    def saw_saved(self) -> None:
        self._needed = len(self._met)

    def products(self) -> tuple[Product, ...]:
        return tuple(x for x in self._met[: self._needed] if x.name not in self._spoilt)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        written = writes_into(func, args)
        for tensor in tensors:
            place = identity(tensor)
            if place not in self._results or not results or getattr(func, "is_view", False):
                continue  # an operation that gives no tensor, or another view of the same, reads no number
            if written is not None and place == written and place in self._touched:
                self._spoilt.add(self._results[place].name)
            self._touched.add(place)
        if (name := self._number(func)) is not None:
            label = next((self._labels[identity(x)] for x in tensors if identity(x) in self._labels), "attention")
            size = sum(x.untyped_storage().nbytes() for x in results)
            product = Product(name, label.rpartition(".")[0] or label, _flops(func, args, kwargs, out), size)
            self._met.append(product)
            self._results |= {identity(x): product for x in results}
        elif len(tensors) == 1 and len(results) == 1 and identity(tensors[0]) in self._labels:
            self._labels[identity(results[0])] = self._labels[identity(tensors[0])]  # a weight's narrow copy
        return out


def _flops(operation: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Of one product. A library's attention without a formula counts as if every query saw the longest segment."""
    formula = flop_registry.get(getattr(operation, "_overloadpacket", operation))
    if formula is not None:
        return int(formula(*args, **(kwargs or {}), out_val=out))
    query = next(x for x in tree_leaves(args) if isinstance(x, Tensor))
    longest = max((x for x in args if isinstance(x, int)), default=query.shape[0])
    return 4 * query.numel() * longest
