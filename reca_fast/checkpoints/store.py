"""The checkpoints of a run. A folder such as `step-0000100` holds one safetensors file for each process,
run_state.json, and the checksums of all of them.

A checkpoint is written under a hidden name and renamed when it is whole; before it is removed, it gets a hidden name
again. So whatever has a plain name can be resumed from, even after `kill -9` or on a full disk. Sizes and checksums
tell what was damaged later. Only trained weights are saved: the frozen ones are in the model that training began with.
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
"""A run_state.json that is larger is taken for damaged. It holds some 20 kB for each process."""
_NAME = re.compile(r"step-(\d{7})")
_SHARD = re.compile(r"shard-\d{5}\.safetensors")

Sections = Mapping[str, Mapping[str, Tensor]]
"""Name of a section (the model, the average, a moment of the optimizer, ...) -> its tensors by name."""


class CheckpointStore:
    """The checkpoints of one run folder. Only the first process creates, renames and removes; all write their shards.

    Args:
        folder: the folder that the checkpoints are in.
        keep: how many whole checkpoints are kept.
        rank: number of this process, from 0.
        gather: takes a value of this process and returns those of all, in the order of their ranks. All processes call
            it together.
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
        """(step, folder) of everything that is called as a checkpoint is, oldest first."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else []
        return sorted((int(match[1]), path) for path in found if (match := _NAME.fullmatch(path.name)))

    def whole(self) -> list[tuple[int, Path]]:
        """(step, folder) of the checkpoints from which nothing is missing, oldest first. Contents are not compared."""
        return [(step, path) for step, path in self.named() if not fault(path, verify=False)]

    def newest(self, *, verify: bool = True, tell: Callable[[str], None] = lambda sentence: None) -> Path | None:
        """The newest undamaged checkpoint. All processes call this together and get the same answer.

        Args:
            verify: compare every file with its checksum; the processes share the work.
            tell: is called with a sentence for each newer checkpoint that is damaged.

        Returns:
            Its folder, or None when there are no checkpoints at all.

        Raises:
            UserError: all checkpoints are damaged, or one has an earlier layout, which is never opened.
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
        """Remove what a killed process left half written or half removed.

        Only the run that owns the folder may call this: what another run is just writing would go too.
        """
        if self.is_main and self.folder.is_dir():
            for path in self.folder.glob(".step-*"):
                _remove(path)

    def save(self, step: int, tensors: Sections, state: dict[str, Any]) -> Path:
        """Save a checkpoint after `step` updates, and remove old ones. All processes call this together.

        Args:
            tensors: whole or sharded, each written in its own dtype.
            state: everything else, as values that JSON can hold: position in the data, configuration, counters.

        Returns:
            The checkpoint's folder.

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
            if os.path.lexists(final):  # it is damaged: otherwise the run would have gone on from it
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
            # A checkpoint of a later step was left aside as damaged, or the run would have gone on from it. It does not
            # count among those that are kept.
            for old in [path for at, path in self.whole() if at <= step][: -self.keep]:
                _discard(old)
        return final

    def load(self, path: Path, tensors: Sections) -> None:
        """Read a checkpoint back into `tensors`, whatever the number of processes that saved it.

        Raises:
            UserError: the checkpoint is damaged, or holds other tensors.
        """
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
        """What a user should do when training has diverged, as part of a sentence. All processes call this together."""
        path = self._newest_or_none()
        return f"{f'resume from {path}' if path else 'start again'} with a lower --optim.lr"

    def _newest_or_none(self) -> Path | None:
        with suppress(UserError):
            return self.newest()
        return None


class SavedWeights(Mapping[str, Tensor]):
    """The tensors of one section of a checkpoint, by name. Each is read when it is asked for: on the CPU, in the dtype
    that training kept it in, and not to be written to.

    Raises:
        UserError: the checkpoint is damaged, or has no such section. So does asking for a damaged tensor.
    """

    def __init__(self, path: Path, section: str) -> None:
        self.path, self.section = path, section
        with self._reading():
            self._files = ShardFiles(_shards(path))
        prefix = f"{section}."
        ours = [name for name in self._files.shapes if name.startswith(prefix)]
        self._names = dict.fromkeys(name.removeprefix(prefix) for name in ours)
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

    def __contains__(self, name: object) -> bool:
        return name in self._names  # without reading the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def folder_name(step: int) -> str:
    """Name of the folder of the checkpoint after `step` updates."""
    return f"step-{step:07d}"


def fault(path: Path, verify: bool = True, share: tuple[int, int] = (0, 1)) -> str:
    """Why a checkpoint is damaged, as part of a sentence; an empty string when it is not.

    Args:
        path: folder of the checkpoint.
        verify: compare contents with checksums, and not only names and sizes.
        share: (number of this process, number of processes), if several compare a share of the files each.

    Raises:
        UserError: the checkpoint has the earlier layout, whose files could run code when they are opened.
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
    """Remove a checkpoint. If this is killed half way, what is left has a hidden name."""
    _remove(path.rename(path.with_name(f".{path.name}.removed")))


def _remove(path: Path) -> None:
    """Remove a folder with all that is in it, or a file. What cannot be removed stays, without an error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def _reading(path: Path, advice: str) -> Iterator[None]:
    """A context in which damage and tensors that do not fit become a UserError, which ends with `advice`."""
    try:
        yield
    except (Damaged, Misfit, OSError, torch.OutOfMemoryError) as error:
        raise UserError(f"The checkpoint {path} cannot be loaded ({_reason(error)}). {advice}") from None


def _failure_of(action: Callable[[], None]) -> str:
    """Do something, and return why it failed; an empty string when it did not."""
    try:
        action()
    except (OSError, RuntimeError) as error:
        return _reason(error)
    return ""


def _sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's entries, is safe on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    """The first line of an error's message, as part of a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")
