"""Processes: started alone or by torchrun, with host-side reductions that never touch the device."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from reca_fast.errors import UserError


class Processes:
    """This process's place among the others; with one process everything is a no-op.

    Small host values (token counts, stop flags) travel over gloo, so reducing them does not synchronise a GPU.
    """

    def __init__(self, device: str, replicate: int = 1) -> None:
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.device = self._pick_device(device)
        self.mesh: DeviceMesh | None = None
        if self.world % replicate:
            raise UserError(f"parallel.replicate={replicate} does not divide the {self.world} processes.")
        if self.world > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo")
            shards = self.world // replicate
            shape, names = ((replicate, shards), ("replicate", "shard")) if replicate > 1 else ((shards,), ("shard",))
            self.mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=names)

    def _pick_device(self, name: str) -> torch.device:
        if name not in ("auto", "cpu", "cuda"):
            raise UserError(f"device={name!r}: expected auto, cpu or cuda.")
        if name == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: torch sees no GPU here; `reca-fast doctor` says why. Use --device cpu.")
        if name == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: list[int]) -> list[int]:
        """Element-wise sum over all processes, on the host."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of a small device tensor over all processes (logging steps only)."""
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

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
