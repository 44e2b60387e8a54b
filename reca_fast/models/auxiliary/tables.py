"""Building transformers' classes without memory for their weights, but with the tables that no file holds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

Tables = Mapping[str, tuple[torch.dtype, list[object]]]
"""Name of a buffer -> its dtype and numbers. As plain numbers they can be made again on any device, fake ones too."""


@contextmanager
def weights_on_meta() -> Iterator[None]:
    """A context in which modules are built with parameters on the meta device, while buffers (rotary frequencies,
    numbers of positions) are computed as always: which they are, only the class knows.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def tables_of(module: nn.Module) -> Tables:
    """The buffers that no checkpoint holds, of a module that was built in `weights_on_meta`."""
    tables = {}
    for prefix, part in module.named_modules():
        for name in part._non_persistent_buffers_set:
            table = part._buffers[name]
            if table is not None:
                tables[f"{prefix}.{name}".lstrip(".")] = (table.dtype, table.tolist())
    return tables


def give_tables(module: nn.Module, tables: Tables, device: torch.device | str) -> None:
    """Make the tables anew on a device."""
    for name, (dtype, numbers) in tables.items():
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, torch.tensor(numbers, dtype=dtype, device=device))
