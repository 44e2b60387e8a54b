"""Checkpoints of a run: `checkpoints/step-0000100/`, each a torch DCP directory plus run_state.json.

A checkpoint is written under a hidden name and renamed when it is whole, and renamed back before it is removed, so
whatever carries a plain name can be resumed from, after `kill -9` or a full disk as well. run_state.json lists the
files with their sizes, so damage from outside is noticed too. Only trained weights are saved: frozen ones stay in the
base.
"""

import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from reca_fast.errors import UserError

STATE_FILE = "run_state.json"
DAMAGE = (
    *(pickle.UnpicklingError, EOFError, LookupError, AttributeError, ImportError, UnicodeError, TypeError),
    *(OverflowError, MemoryError, AssertionError),
)
"""What unpickling raises when the bytes are others than were written."""
UNREADABLE = (OSError, CheckpointException, RuntimeError, ValueError, *DAMAGE)
_NAME = re.compile(r"step-(\d{7})")


class CheckpointStore:
    """The checkpoints of one run folder.

    Args:
        folder: where they live.
        keep: how many whole ones stay.
        is_main: this process creates, renames and removes; the others only write their shards.
        agree: gives every process the first non-empty text of any; all call it together.
    """

    def __init__(
        self, folder: Path, *, keep: int = 2, is_main: bool = True, agree: Callable[[str], str] = lambda text: text
    ) -> None:
        self.folder, self.keep, self.is_main, self.agree = folder, keep, is_main, agree

    def named(self) -> list[tuple[int, Path]]:
        """(step, folder) of everything that carries a checkpoint's name, oldest first."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else []
        return sorted((int(match[1]), path) for path in found if (match := _NAME.fullmatch(path.name)))

    def whole(self) -> list[tuple[int, Path]]:
        """Those that nothing is missing from."""
        return [(step, path) for step, path in self.named() if _is_whole(path)]

    def latest(self) -> tuple[int, Path] | None:
        """The newest whole checkpoint, or None."""
        whole = self.whole()
        return whole[-1] if whole else None

    def sweep(self) -> None:
        """Remove what a killed process left half written or half removed. Only the run that owns the folder may."""
        if self.is_main and self.folder.is_dir():
            for path in self.folder.glob(".step-*"):
                shutil.rmtree(path, ignore_errors=True)

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

        def create() -> None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

        def write() -> None:
            with _no_hints():
                dcp.save(tensors, checkpoint_id=partial)

        def publish() -> None:
            files = {path.name: path.stat().st_size for path in partial.iterdir()}
            (partial / STATE_FILE).write_text(json.dumps({**state, "files": files}))
            for path in (*partial.iterdir(), partial):
                _sync(path)
            if final.exists():  # damaged, or this save would not be due
                _discard(final)
            partial.rename(final)
            _sync(self.folder)

        for action, by_all in ((create, False), (write, True), (publish, False)):
            if failure := self.agree(_failure_of(action) if by_all or self.is_main else ""):
                shutil.rmtree(partial, ignore_errors=True)
                last = self.latest()
                kept = f"the last whole one is {last[1]}" if last else "there is none before it"
                raise UserError(
                    f"Checkpoint {final} could not be saved ({failure}); {kept}. "
                    "Free some space, or set --out to another disk, and start the same command again."
                )
        if self.is_main:
            for _, old in self.whole()[: -self.keep]:
                _discard(old)
        return final

    def load(self, path: Path, tensors: dict[str, Any]) -> dict[str, Any]:
        """Fill `tensors` in place, whatever the number of processes that saved them; returns the JSON-able rest."""
        with _reading(
            path,
            "It must come from the same model and the same trained part; remove it to resume from an "
            "older one, or name another --out.",
        ):
            dcp.FileSystemReader(path).read_metadata()  # DCP itself logs a traceback when it cannot
            dcp.load(tensors, checkpoint_id=path)
            return self.read_state(path)

    def read_state(self, path: Path) -> dict[str, Any]:
        """The JSON-able rest of a checkpoint alone."""
        return json.loads((path / STATE_FILE).read_text())


class SavedWeights(Mapping[str, Tensor]):
    """The trained weights of a checkpoint by module name, read one by one when asked for (fp32, on the CPU)."""

    def __init__(self, path: Path, section: str) -> None:
        self.path, self.section = path, section
        with _reading(path, "Export an older one."):
            metadata = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        prefix = f"{section}."
        self._sizes: dict[str, Any] = {
            name.removeprefix(prefix): entry for name, entry in metadata.items() if name.startswith(prefix)
        }
        if not self._sizes:
            raise UserError(f"The checkpoint {path} holds no {section!r} weights.")

    def __getitem__(self, name: str) -> Tensor:
        entry = self._sizes[name]
        with _reading(self.path, "Export an older one."):
            wanted = {f"{self.section}.{name}": torch.empty(entry.size, dtype=entry.properties.dtype)}
            dcp.load(wanted, storage_reader=dcp.FileSystemReader(self.path), no_dist=True)
        return wanted[f"{self.section}.{name}"]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)


def _is_whole(path: Path) -> bool:
    """Every file that the checkpoint was published with is there, in full length."""
    try:
        files = json.loads((path / STATE_FILE).read_text())["files"]
        return bool(files) and all((path / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # gone, no JSON, or JSON of something else
        return False


def _discard(path: Path) -> None:
    """Remove a checkpoint; killed half way, it leaves nothing that looks like one."""
    hidden = path.rename(path.with_name(f".{path.name}.removed"))
    shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def _no_hints() -> Iterator[None]:
    """DCP warns whenever a process works alone, with no_dist too, and of damage that is an error anyway."""
    with warnings.catch_warnings():
        for hint in ("torch.distributed is disabled", "Detected pickle protocol"):
            warnings.filterwarnings("ignore", message=hint)
        yield


@contextmanager
def _reading(path: Path, advice: str) -> Iterator[None]:
    """Damage, and tensors that do not fit, become a UserError."""
    try:
        with _no_hints():
            yield
    except UNREADABLE as error:
        raise UserError(f"The checkpoint {path} cannot be loaded ({_reason(error)}). {advice}") from None


def _failure_of(action: Callable[[], None]) -> str:
    """Run it; the reason why it failed, or nothing."""
    try:
        action()
    except (OSError, CheckpointException, RuntimeError) as error:
        return _reason(error)
    return ""


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
    if "inline_container" in str(error):  # torch's zip writer found its file shorter than what it wrote
        return "a file was not taken in full, as on a full disk"
    if isinstance(error, DAMAGE) or "PytorchStreamReader" in str(error):
        return "a file in it is damaged"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")
