"""Recomputation, also called activation or gradient checkpointing: of whole blocks, or of what was not kept of them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .block_cost import block_cost
from .choice import Choice, Rule
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
    block runs once more, keeping nothing. All blocks have to be alike.

    Price, excludes: as `recompute`, with less arithmetic and more memory, as the rule says.

    Args:
        compiled: compiles a function, where blocks are to be compiled: which of its results a compiled block keeps
            must be known inside of it.
        say: is told each decision, in one line.
    """
    shared = _Decision(rule, len(blocks), say)
    for number, block in enumerate(blocks):
        block.forward = _Kept(block, number, shared, compiled)


class _Decision:
    """The choice in force, which all blocks share."""

    def __init__(self, rule: Rule, blocks: int, say: Callable[[str], None]) -> None:
        self._rule, self._blocks, self._say = rule, blocks, say
        self._choice: Choice | None = None
        self._longest = 0

    def names(self, call: "_Kept", args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[Name] | None:
        size = sum(x.numel() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        if self._choice is None or (call.number == 0 and size > self._longest):
            self._longest = size
            cost = block_cost(call.block, call.plain, args, kwargs)
            choice = self._rule(cost, self._blocks)
            if self._choice is None or choice.kept != self._choice.kept:
                self._say(choice.says(cost))
            self._choice = choice
        return self._choice.kept[call.number]


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
