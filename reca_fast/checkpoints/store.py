"""Checkpoints of a run: `checkpoints/step-0000100/`, safetensors files of the processes, run_state.json and checksums.

A checkpoint is written under a hidden name and renamed when it is whole, and renamed back before it is removed, so
whatever carries a plain name can be resumed from, after `kill -9` or a full disk as well. Sizes and checksums of all
files tell what was damaged later. Only trained weights are saved: frozen ones stay in the base.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reca_fast.errors import UserError
from reca_fast.schema import read_json

from .checksums import CHECKSUMS_FILE, checksum, read_checksums, write_checksums
from .shards import Damaged, Misfit, ShardFiles, all_finite, write_shards

STATE_FILE = "run_state.json"
MAX_STATE_BYTES = 1 << 30
"""Of run_state.json: it grows with the processes, some 20 kB each."""
_NAME = re.compile(r"step-(\d{7})")
_SHARD = re.compile(r"shard-\d{5}\.safetensors")

Sections = Mapping[str, Mapping[str, Tensor]]
"""Named tensors by what they are: model, average, a moment of the optimizer, ..."""


class CheckpointStore:
    """The checkpoints of one run folder. The first process creates, renames and removes; the others write their shards.

    Args:
        folder: where they live.
        keep: how many whole ones stay.
        rank: number of this process.
        gather: gives every process the values of all, in the order of their ranks; all call it together.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        rank: int = 0,
        gather: Callable[[Any], list[Any]] = lambda value: [value],
    ) -> None:
        self.folder, self.keep, self.rank, self.gather = folder, keep, rank, gather
        self._world = len(gather(None))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def named(self) -> list[tuple[int, Path]]:
        """(step, folder) of everything that carries a checkpoint's name, oldest first."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else []
        return sorted((int(match[1]), path) for path in found if (match := _NAME.fullmatch(path.name)))

    def whole(self) -> list[tuple[int, Path]]:
        """Those that nothing is missing from. Their contents are not read: see `newest`."""
        return [(step, path) for step, path in self.named() if not fault(path, verify=False)]

    def newest(self, *, verify: bool = True, tell: Callable[[str], None] = lambda sentence: None) -> Path | None:
        """The newest checkpoint without a fault; all processes call it and get the same one.

        Args:
            verify: compare every file with its checksum; the processes share the work.
            tell: is given a sentence for each newer one that is damaged.

        Returns:
            None when there is no checkpoint.

        Raises:
            UserError: all there are have a fault, or one is of an earlier layout, which is never opened.
        """
        reasons = []
        named: list[tuple[int, Path]] = self.gather(self.named())[0]
        for _, path in reversed(named):
            reason = next(filter(None, self.gather(fault(path, verify, (self.rank, self._world)))), "")
            if not reason:
                return path
            reasons.append(f"{path} is damaged ({reason})")
            tell(f"{reasons[-1]} and left aside.")
        if reasons:
            raise UserError(
                f"{'; '.join(reasons)}, and {self.folder} holds no whole checkpoint. Remove what is damaged to begin "
                "anew, or name another --out."
            )
        return None

    def sweep(self) -> None:
        """Remove what a killed process left half written or half removed. Only the run that owns the folder may."""
        if self.is_main and self.folder.is_dir():
            for path in self.folder.glob(".step-*"):
                _remove(path)

    def save(self, step: int, tensors: Sections, state: dict[str, Any]) -> Path:
        """Save after `step` updates; all processes call it.

        Args:
            tensors: (sharded) tensors of floats.
            state: JSON-able rest: position of the data, configuration, counters.

        Raises:
            UserError: a tensor holds inf or NaN, or the disk is full or not writable. What was saved before is
                untouched.
        """
        final = self.folder / folder_name(step)
        partial = self.folder / f".{final.name}.partial"
        flat = _flat(tensors)
        if not all(self.gather(all_finite(flat))):
            raise UserError(
                f"Step {step}: the update made trained weights or moments inf or NaN. Nothing of it was saved; "
                f"{self.advice()}."
            )
        checksums: dict[str, str] = {}

        def create() -> None:
            _remove(partial)
            partial.mkdir(parents=True)

        def write() -> None:
            name = f"shard-{self.rank:05d}.safetensors"
            if sum_ := write_shards(partial / name, flat, is_main=self.is_main):
                checksums[name] = sum_

        def publish() -> None:
            if hidden := [name for name in checksums if not (partial / name).exists()]:
                raise OSError(f"the first process does not see {hidden[0]}: all must share the folder --out")
            files = {name: (partial / name).stat().st_size for name in checksums}
            (partial / STATE_FILE).write_text(json.dumps({**state, "files": files}))
            write_checksums(partial, checksums | {STATE_FILE: checksum(partial / STATE_FILE)})
            for path in (partial / STATE_FILE, partial / CHECKSUMS_FILE, partial):
                _sync(path)
            if os.path.lexists(final):  # damaged, or this save would not be due
                _discard(final)
            partial.rename(final)
            _sync(self.folder)

        for action, by_all in ((create, False), (write, True), (publish, False)):
            reasons = self.gather(_failure_of(action) if by_all or self.is_main else "")
            if reason := next(filter(None, reasons), ""):
                shutil.rmtree(partial, ignore_errors=True)
                last = self._newest_or_none()
                kept = f"the last whole one is {last}" if last else "there is none before it"
                raise UserError(
                    f"Checkpoint {final} could not be saved ({reason}); {kept}. "
                    "Free some space, or set --out to another disk, and start the same command again."
                )
            if by_all:
                checksums = {name: sum_ for part in self.gather(checksums) for name, sum_ in part.items()}
        if self.is_main:
            # A later one than this was left aside as damaged, or the run would have gone on from it: it does not count.
            for old in [path for at, path in self.whole() if at <= step][: -self.keep]:
                _discard(old)
        return final

    def load(self, path: Path, tensors: Sections) -> None:
        """Fill `tensors` in place, whatever the number of processes that saved them."""
        with _reading(
            path,
            "It must come from the same model and the same trained part; remove it to resume from an older one, "
            "or name another --out.",
        ):
            flat = _flat(tensors)
            with ShardFiles(_shards(path)) as files:
                if strangers := files.shapes.keys() - flat.keys():
                    raise Misfit(f"it holds {min(strangers)}, which has no place here")
                for name, tensor in flat.items():
                    files.read_into(name, tensor)
            if not all_finite(flat):
                raise Damaged("it holds inf or NaN")

    def advice(self) -> str:
        """What to do when training has diverged; all processes call it."""
        path = self._newest_or_none()
        return f"{f'resume from {path}' if path else 'start again'} with a lower --optim.lr"

    def _newest_or_none(self) -> Path | None:
        with suppress(UserError):
            return self.newest()
        return None


class SavedWeights(Mapping[str, Tensor]):
    """The tensors of one section of a checkpoint, read one by one when asked for (fp32, on the CPU)."""

    def __init__(self, path: Path, section: str) -> None:
        self.path, self.section = path, section
        with self._reading():
            self._files = ShardFiles(_shards(path))
        prefix = f"{section}."
        self._names = [name.removeprefix(prefix) for name in self._files.shapes if name.startswith(prefix)]
        if not self._names:
            raise UserError(f"The checkpoint {path} holds no {section!r} weights.")

    def _reading(self) -> AbstractContextManager[None]:
        return _reading(self.path, "Export an older one.")

    def __getitem__(self, name: str) -> Tensor:
        with self._reading():
            tensor = self._files.read(f"{self.section}.{name}")
            if not all_finite({name: tensor}):
                raise Damaged(f"{name} holds inf or NaN")
            return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def folder_name(step: int) -> str:
    """Name of the checkpoint after `step` updates."""
    return f"step-{step:07d}"


def fault(path: Path, verify: bool = True, share: tuple[int, int] = (0, 1)) -> str:
    """Why a checkpoint is not whole, or nothing.

    Args:
        verify: compare contents with checksums, not names and sizes alone.
        share: (this process, number of processes) among which the files are shared out to be compared.

    Raises:
        UserError: it is of the earlier layout, whose files could run code when they are opened.
    """
    if (path / ".metadata").exists():
        raise UserError(
            f"{path} holds .metadata, as checkpoints of an earlier version of reca-fast do: opening it could run code, "
            "so this version does not. Name another --out, or resume and export it with the version that wrote it."
        )
    try:
        sizes = read_json(path / STATE_FILE, max_bytes=MAX_STATE_BYTES)["files"]
        missing = [name for name, size in sizes.items() if (path / name).stat().st_size != size]
    except (OSError, LookupError, TypeError, AttributeError, ValueError, UserError):
        return f"a file is missing, or {STATE_FILE} is not what was written"
    if missing:
        return f"{missing[0]} is not of its full length"
    checksums = read_checksums(path)
    if not sizes or checksums.keys() != {STATE_FILE, *sizes} or not all(map(_SHARD.fullmatch, sizes)):
        return f"{CHECKSUMS_FILE} is not what was written"
    mine = sorted(checksums)[share[0] :: share[1]] if verify else []
    try:
        return next(
            (f"the checksum of {name} differs" for name in mine if checksum(path / name) != checksums[name]), ""
        )
    except OSError as error:
        return _reason(error)


def _flat(sections: Sections) -> dict[str, Tensor]:
    return {f"{section}.{name}": tensor for section, part in sections.items() for name, tensor in part.items()}


def _shards(path: Path) -> Sequence[Path]:
    return [path / name for name in sorted(read_checksums(path)) if _SHARD.fullmatch(name)]


def _discard(path: Path) -> None:
    """Remove a checkpoint; killed half way, it leaves nothing that looks like one."""
    _remove(path.rename(path.with_name(f".{path.name}.removed")))


def _remove(path: Path) -> None:
    """A folder with all that is in it, or whatever else carries the name; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def _reading(path: Path, advice: str) -> Iterator[None]:
    """Damage, and tensors that do not fit, become a UserError."""
    try:
        yield
    except (Damaged, Misfit, OSError, torch.OutOfMemoryError) as error:
        raise UserError(f"The checkpoint {path} cannot be loaded ({_reason(error)}). {advice}") from None


def _failure_of(action: Callable[[], None]) -> str:
    """Run it; the reason why it failed, or nothing."""
    try:
        action()
    except (OSError, RuntimeError) as error:
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
    """Its first line as part of a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")
