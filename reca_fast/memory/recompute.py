"""Recomputation, also called activation or gradient checkpointing: of whole blocks, or of what was not kept of them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .block_cost import BlockCost, block_cost
from .choice import Choice, Kind, Rule
from .keeping import Name, run_keeping, run_keeping_compiled

Forward = Callable[..., Any]


def recompute(blocks: Sequence[nn.Module]) -> None:
    """Make each block keep only its inputs for the backward pass, and run it a second time there.

    Price: the forward pass of every block twice, about a third more arithmetic in a step. Without gradients (sampling)
    it costs nothing, because nothing is kept there anyway.

    Excludes: blocks that draw random numbers (the second run would draw others), and blocks that write into their
    inputs. Values and gradients stay the same to the last bit, and so do the names of the parameters.
    """
    for block in blocks:
        block.forward = partial(_run_again_in_backward, block.forward)


def _run_again_in_backward(forward: Forward, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return run_keeping(forward, frozenset(), *args, **kwargs)


def recompute_rest(
    blocks: Sequence[nn.Module],
    rule: Rule,
    *,
    compiled: Callable[[Forward], Forward] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Make each block keep its inputs and those results of products that `rule` chooses, and compute the rest a second
    time in the backward pass.

    The rule decides when the first block runs for the first time, from what the block really computes there, and anew
    when a longer pack arrives. So a budget holds for every pack, and no model or kernel is known here. For that, the
    block runs once more, keeping nothing. Where blocks are of several kinds (of other classes or sizes), one of each is
    watched, and until the last of them has run the blocks keep their inputs alone.

    Price, excludes: as `recompute`, with less arithmetic and more memory, as the rule says.

    Args:
        compiled: compiles a function, where blocks are to be compiled: which of its results a compiled block keeps
            must be known inside of it.
        say: is told each decision, in one line.
    """
    shared = _Decision(rule, blocks, say)
    for number, block in enumerate(blocks):
        block.forward = _Kept(block, number, shared, compiled)


class _Decision:
    """The choice in force, which all blocks share."""

    def __init__(self, rule: Rule, blocks: Sequence[nn.Module], say: Callable[[str], None]) -> None:
        self._rule, self._say = rule, say
        alike: dict[Any, list[int]] = {}
        for number, block in enumerate(blocks):
            alike.setdefault(_kind(block), []).append(number)
        self._numbers = list(alike.values())
        self._first = {numbers[0]: kind for kind, numbers in enumerate(self._numbers)}  # of each kind its first block
        self._choice: Choice | None = None
        self._said: Choice | None = None
        self._costs: dict[int, BlockCost] = {}
        self._longest: dict[int, int] = {}

    def names(self, call: "_Kept", args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[Name] | None:
        kind = self._first.get(call.number)
        if kind is not None:
            size = sum(x.numel() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
            if kind not in self._costs or size > self._longest[kind]:
                if call.number == 0:  # a longer pack: what the other kinds took of shorter ones says nothing
                    self._costs, self._choice = {}, None
                self._longest[kind], self._costs[kind] = size, block_cost(call.block, call.plain, args, kwargs)
                self._decide()
        return frozenset() if self._choice is None else self._choice.kept[call.number]

    def _decide(self) -> None:
        """Choose, once a block of every kind was watched."""
        if len(self._costs) < len(self._numbers):
            return
        kinds = [Kind(self._costs[kind], tuple(numbers)) for kind, numbers in enumerate(self._numbers)]
        self._choice = self._rule(kinds)
        if self._said is None or self._choice.kept != self._said.kept:
            self._say(self._choice.says(kinds))
        self._said = self._choice


def _kind(block: nn.Module) -> Any:
    """What blocks that are alike have in common: their class, and the names and shapes of their trained weights."""
    return type(block), tuple((name, tuple(p.shape)) for name, p in block.named_parameters() if p.requires_grad)


class _Kept:
    """The forward pass of one block."""

    def __init__(
        self, block: nn.Module, number: int, shared: _Decision, compiled: Callable[[Forward], Forward] | None
    ) -> None:
        self.block, self.number, self.plain = block, number, block.forward
        self._shared, self._compiled = shared, compiled
        self._ready: dict[frozenset[Name] | None, Forward] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        names = self._shared.names(self, args, kwargs) if torch.is_grad_enabled() else None
        if names not in self._ready:
            self._ready[names] = self._forward(names)
        return self._ready[names](*args, **kwargs)

    def _forward(self, names: frozenset[Name] | None) -> Forward:
        """The forward pass that keeps the named results, or everything."""
        if self._compiled is None:
            return self.plain if names is None else partial(run_keeping, self.plain, names)
        return self._compiled(self.plain if names is None else partial(run_keeping_compiled, self.plain, names))
