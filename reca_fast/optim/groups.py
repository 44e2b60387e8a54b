"""Which parameters are updated together, and which of them weight decay pulls towards zero."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import nn


class Group(NamedTuple):
    """Trained parameters whose gradients are complete at the same moment, and which are then updated together."""

    names: tuple[str, ...]  # in the model
    parameters: tuple[nn.Parameter, ...]
    decays: tuple[bool, ...]  # of each, whether weight decay acts on it


def group_by_block(
    trained: Mapping[str, nn.Parameter], blocks: Sequence[nn.Module], decays: Callable[[str], bool]
) -> list[Group]:
    """One group for each block, in their order, and a last one for the parameters of no block. Groups may be empty:
    a block's number is that of its group.

    Args:
        trained: the trained parameters by their names in the model.
        blocks: of the model, in the order in which they run.
        decays: whether the parameter of that name decays. The model says so; usually its matrices do, and its biases,
            norms and embeddings do not.
    """
    number = {id(parameter): at for at, block in enumerate(blocks) for parameter in block.parameters()}
    names: list[list[str]] = [[] for _ in range(len(blocks) + 1)]
    for name, parameter in trained.items():
        names[number.get(id(parameter), len(blocks))].append(name)
    return [Group(tuple(its), tuple(trained[n] for n in its), tuple(decays(n) for n in its)) for its in names]
