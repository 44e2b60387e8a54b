"""A frozen embedding table that stays in host memory."""

import torch
from torch import Tensor, nn

from reca_fast.kernels import to_device
from reca_fast.models.files import Place, Placement


class HostTable(nn.Module):
    """An embedding table of which a step reads a few rows: it stays on the host, as a view of its file, and the rows
    travel. A vocabulary of 152 064 tokens takes 1.1 GB in bf16, and a pack reads some hundred rows of it.

    Args:
        rows, width: of the table. Its parameter `weight` is frozen, of any dtype and on any device.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width), requires_grad=False)

    def forward(self, ids: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The rows of these ids, int64 [N] on the host, as [N, width] on `device`. Neither waits for the other."""
        rows = self.weight.index_select(0, to_device(ids, self.weight.device))
        there: Tensor = to_device(rows.to(dtype), device)
        return there


def host_tables(module: nn.Module) -> set[nn.Parameter]:
    """The tables in a module that are to stay on the host."""
    return {part.weight for part in module.modules() if isinstance(part, HostTable)}


def tables_on_host(model: nn.Module, place: Place) -> Place:
    """The same place, but for the tables of a model that stay on the host (see `HostTable`)."""
    tables = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, HostTable)}
    return lambda name, tensor: Placement(None, "cpu") if name in tables else place(name, tensor)
