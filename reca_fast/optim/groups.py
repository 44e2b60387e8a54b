"""Which parameters weight decay pulls towards zero."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn


def parameter_groups(
    trained: Mapping[str, nn.Parameter], decays: Callable[[str], bool], weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: those that decay, then those that do not. A group without parameters is
    left out.

    Args:
        trained: the trained parameters by their names in the model.
        decays: whether the parameter of that name decays. The model says so; usually its matrices do, and its biases,
            norms and embeddings do not.
        weight_decay: of the first group; the second has 0.
    """
    groups = [
        {"params": [p for name, p in trained.items() if decays(name)], "weight_decay": weight_decay},
        {"params": [p for name, p in trained.items() if not decays(name)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
