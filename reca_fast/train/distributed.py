"""The processes of a run, one alone or several that torchrun started, and what they tell each other."""

import os
import re
from collections import Counter
from types import TracebackType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous

from reca_fast.errors import UserError
from reca_fast.hardware import pick_device

from .parent import watch_parent

MOST_PROCESSES = 1 << 20
"""A larger WORLD_SIZE is taken for a mistake."""


class Place(NamedTuple):
    """Where a process stands among those that were started together, by the variables that torchrun sets."""

    world: int  # number of processes
    rank: int  # of this one, from 0
    local_rank: int  # among those on this host


def place_in_environment() -> Place:
    """This process's place; that of a process alone where the variables are not set.

    Raises:
        UserError: a variable has no value that torchrun sets.
    """
    world = _from_environment("WORLD_SIZE", 1, range(1, MOST_PROCESSES + 1))
    rank = _from_environment("RANK", 0, range(world))
    return Place(world, rank, _from_environment("LOCAL_RANK", 0, range(world)))


def _from_environment(name: str, default: int, valid: range) -> int:
    """The whole number in an environment variable, or `default` where it is not set.

    Raises:
        UserError: it is no whole number in the range `valid`.
    """
    text = os.environ.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) not in valid:
        raise UserError(
            f"The environment variable {name} is {text!r:.40}; it must be a whole number from {valid[0]} to "
            f"{valid[-1]}, as torchrun sets it. Start several processes with torchrun, or unset it."
        )
    return int(text)


class Processes:
    """This process's place among those of the run, and what they do together. A process that is alone gets back at
    once what it gave.

    Used as a context: when several processes meet the same error, the first one raises it, and the others end silently
    with the same exit code. Small numbers of the host (token counts, stop flags) travel from host to host, over gloo,
    so that nobody waits for a GPU.
    """

    device: torch.device
    mesh: DeviceMesh | None = None

    def __init__(self) -> None:
        self.world, self.rank, self.local_rank = place_in_environment()
        if self.world > 1:
            _from_environment("MASTER_PORT", 0, range(1 << 16))  # when it is missing, rendezvous says so
        try:
            self._store = next(iter(rendezvous("env://")))[0] if self.world > 1 else None
        except (ValueError, RuntimeError) as error:  # a variable is missing, an address cannot be reached or bound
            reason = str(error).splitlines()[0].removesuffix(".")
            raise UserError(f"WORLD_SIZE is {self.world}, but {reason}; start processes with torchrun.") from None
        self._taken: Counter[str] = Counter()

    def join(self, device: str, replicate: int = 1) -> None:
        """Pick the device and meet the other processes, unless they have met before.

        Args:
            device: auto, cpu or cuda.
            replicate: how many replicas of the model there are, a divisor of the number of processes. The processes of
                one replica share its weights.

        Raises:
            UserError: there is no such device.
        """
        if hasattr(self, "device"):
            return
        watch_parent()
        self.device = pick_device(device, self.local_rank)
        if self.world == 1:
            return
        transport = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(transport, store=self._store, rank=self.rank, world_size=self.world)
        shards = self.world // replicate
        shape, names = ((replicate, shards), ("replicate", "shard")) if replicate > 1 else ((shards,), ("shard",))
        self.mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=names)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: list[int]) -> list[int]:
        """Element-wise sum over all processes. It waits for no device."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def any(self, flag: bool) -> bool:
        """Whether it is true on some process."""
        return self.sum([int(flag)])[0] > 0

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over all processes, in place, on the device. The host does not wait for a GPU."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, on every process."""
        if self.world == 1:
            return [value]
        out: list[Any] = [None] * self.world
        dist.all_gather_object(out, value)
        return out

    def agree(self, text: str) -> str:
        """The first non-empty text of any process, on all of them."""
        return next(filter(None, self.gather(text)), "")

    def take(self, name: str) -> int:
        """The next number of the count `name`, from 0, which no other process gets. So whoever is free takes the next
        piece of work.
        """
        if self._store is not None:
            return int(self._store.add(f"reca_fast/{name}", 1)) - 1
        self._taken[name] += 1
        return self._taken[name] - 1

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            if dist.is_initialized():
                dist.destroy_process_group()
        # After an error the group is left as it is: taking it down could wait for a process that has already gone.
        elif self.world > 1 and not self._first_to_fail():
            raise SystemExit(130 if kind is KeyboardInterrupt else 2) from None
        elif isinstance(error, dist.DistError) or (kind is RuntimeError and "gloo" in str(error)):
            raise UserError(
                "Another process is gone, or cannot be reached: look for the first message above, or for a lack of "
                f"memory. The same command goes on from the last checkpoint ({str(error).splitlines()[0]})."
            ) from None

    def _first_to_fail(self) -> bool:
        assert self._store is not None
        try:
            return bool(self._store.add("reca_fast/failures", 1) == 1)
        except RuntimeError:  # the store went down with the process that held it
            return False
