"""Checkpoints of a run: `checkpoints/step-0000100/`, each a torch DCP directory plus run_state.json.

A checkpoint is written under a temporary name and renamed when it is whole, so whatever carries the final name can be
resumed from, after `kill -9` or a full disk as well. Only trained weights are saved: frozen ones stay in the base
checkpoint.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from reca_fast.errors import UserError

STATE_FILE = "run_state.json"
_NAME = re.compile(r"step-(\d{7})")


class CheckpointStore:
    """The checkpoints of one run folder.

    Args:
        folder: where they live.
        keep: how many whole ones stay.
        is_main: this process creates, renames and removes; the others only write their shards.
        barrier: returns when all processes have called it.
    """

    def __init__(self, folder: Path, *, keep: int = 2, is_main: bool = True, barrier=lambda: None) -> None:
        self.folder, self.keep, self.is_main, self.barrier = folder, keep, is_main, barrier

    def whole(self) -> list[tuple[int, Path]]:
        """(step, folder) of every whole checkpoint, oldest first."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else []
        named = [(match, path) for path in found if (match := _NAME.fullmatch(path.name))]
        return sorted((int(match[1]), path) for match, path in named if (path / STATE_FILE).exists())

    def latest(self) -> tuple[int, Path] | None:
        """The newest whole checkpoint, or None."""
        whole = self.whole()
        return whole[-1] if whole else None

    def save(self, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> Path:
        """Save after `step` updates; all processes call it.

        Args:
            tensors: nested dict of (sharded) tensors and numbers for DCP.
            state: JSON-able rest: position of the data, configuration, counters.

        Raises:
            UserError: the disk is full or not writable. What was saved before is untouched.
        """
        final = self.folder / f"step-{step:07d}"
        partial = self.folder / f".{final.name}.partial"
        failure = ""
        try:
            if self.is_main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self.barrier()
            dcp.save(tensors, checkpoint_id=partial)
            if self.is_main:
                (partial / STATE_FILE).write_text(json.dumps(state))
                for path in (*partial.iterdir(), partial):
                    _sync(path)
                if final.exists():  # the same step again, after a resume from an older one
                    shutil.rmtree(final)
                partial.rename(final)
                _sync(self.folder)
        except (OSError, CheckpointException, RuntimeError) as error:
            failure = _reason(error)
        if failure:
            shutil.rmtree(partial, ignore_errors=True)
            last = self.latest()
            kept = f"the last whole one is {last[1]}" if last else "there is none before it"
            raise UserError(
                f"Checkpoint {final} could not be saved ({failure}); {kept}. "
                "Free some space, or set --out to another disk, and start the same command again."
            )
        self.barrier()
        if self.is_main:
            for _, old in self.whole()[: -self.keep]:
                shutil.rmtree(old)
        return final

    def load(self, path: Path, tensors: dict[str, Any]) -> dict[str, Any]:
        """Fill `tensors` in place, whatever the number of processes that saved them; returns the JSON-able rest."""
        try:
            dcp.load(tensors, checkpoint_id=path)
            return json.loads((path / STATE_FILE).read_text())
        except (OSError, CheckpointException, RuntimeError, ValueError) as error:
            raise UserError(
                f"The checkpoint {path} cannot be loaded ({_reason(error)}). It must come from the same model and the "
                "same trained part; remove it to resume from an older one, or set --resume false to start anew."
            ) from None

    def read_state(self, path: Path) -> dict[str, Any]:
        """The JSON-able rest of a checkpoint alone."""
        return json.loads((path / STATE_FILE).read_text())


class SavedWeights(Mapping[str, Tensor]):
    """The trained weights of a checkpoint by module name, read one by one when asked for (fp32, on the CPU)."""

    def __init__(self, path: Path, section: str) -> None:
        self.path, self.section = path, section
        self._reader = dcp.FileSystemReader(path)
        try:
            metadata = self._reader.read_metadata().state_dict_metadata
        except (OSError, CheckpointException) as error:
            raise UserError(f"{path} is not a whole checkpoint: {_reason(error)}.") from None
        prefix = f"{section}."
        self._sizes = {name.removeprefix(prefix): entry for name, entry in metadata.items() if name.startswith(prefix)}
        if not self._sizes:
            raise UserError(f"The checkpoint {path} holds no {section!r} weights.")

    def __getitem__(self, name: str) -> Tensor:
        entry = self._sizes[name]
        wanted = {f"{self.section}.{name}": torch.empty(entry.size, dtype=entry.properties.dtype)}
        dcp.load(wanted, storage_reader=dcp.FileSystemReader(self.path), no_dist=True)
        return wanted[f"{self.section}.{name}"]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)


def _sync(path: Path) -> None:
    """Make a file or a folder's entries durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    """The innermost sentence: DCP wraps the operating system's error of each process."""
    if isinstance(error, CheckpointException):
        first = next(iter(error.failures.values()))
        error = first[0] if isinstance(first, tuple) else first
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
