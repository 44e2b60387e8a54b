"""A module's tensors under the names that its model gave them, whatever memory levers have made of its layers.

A lever may change a linear layer on the meta device, before there are weights, in two ways. It may keep the weight in
another form (`PackedWeight`), or put a layer around it that keeps it as `base_layer` and has tensors of its own beside
it, which no checkpoint of the model holds (peft's adapters do so). The file knows neither.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

BASE = "base_layer"
"""Attribute under which a layer that is put around another one keeps it."""


class PackedWeight(nn.Module, ABC):
    """A layer whose weight is kept in several tensors of its own, in another form than the file's."""

    WEIGHT: ClassVar[str] = "weight"
    """What the file calls the weight, below the layer's name."""
    PACKED: ClassVar[tuple[str, ...]]
    """Names of the tensors in the layer that keep it."""

    @property
    @abstractmethod
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight as the file has it."""

    @abstractmethod
    def pack(self, weight: Tensor) -> None:
        """Take the weight, which is on its device by now, and keep it packed."""


class Held(NamedTuple):
    """A parameter or persistent buffer that a model has, and where it stands."""

    name: str  # as the model called it before levers changed its layers
    owner: nn.Module
    leaf: str
    tensor: Tensor  # of a packed weight an empty one in the weight's shape, on the meta device


def plain_tensors(module: nn.Module, prefix: str = "") -> Iterator[Held]:
    """Every tensor that `module` had before levers changed its layers, in the order of its state_dict; what levers
    added is left out.
    """
    base = getattr(module, BASE, None)
    if isinstance(base, nn.Module):
        yield from plain_tensors(base, prefix)
        return
    hidden: set[str] = set(module._non_persistent_buffers_set)
    if isinstance(module, PackedWeight):
        hidden.update(module.PACKED)
        empty = torch.empty(module.weight_shape, device="meta")
        yield Held(prefix + module.WEIGHT, module, module.WEIGHT, empty)
    for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and leaf not in hidden:
            yield Held(prefix + leaf, module, leaf, tensor)
    for name, child in module._modules.items():
        if child is not None:
            yield from plain_tensors(child, f"{prefix}{name}.")
