"""Is what was not to be trained the same as before? Files are compared tensor by tensor, then what comes out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from reca_fast.models import Model
from reca_fast.models.files import Weights, open_weights

AT_ONCE = 2**22
"""How many numbers of a tensor are compared at once."""
NAMED = 3
"""Tensors that a line names before it breaks off."""


@dataclass
class PartVerdict:
    """What the comparison of one part of a model found."""

    name: str
    tensors: int = 0
    bytes: int = 0
    """Size of these tensors in the base's file."""
    differing: list[str] = field(default_factory=list)
    """Keys of tensors that have other numbers, another shape, or are not there, each with the reason."""
    wider: str = ""
    """The dtype in which the other file holds the same numbers, where it is a wider one than the base's."""

    def __str__(self) -> str:
        """One line for people."""
        if self.differing:
            more = ", ..." if len(self.differing) > NAMED else ""
            first = ", ".join(self.differing[:NAMED]) + more
            return f"{self.name}: {len(self.differing)} of {self.tensors} tensors DIFFER: {first}"
        same = f"the same numbers, stored as {self.wider}" if self.wider else "byte-identical"
        return f"{self.name}: {self.tensors} tensors, {self.bytes / 1e9:.3f} GB, {same}"


def compare_frozen(base: Model, other: Model) -> Iterator[PartVerdict]:
    """A verdict on every frozen part of `base`, whose tensors are looked for in the same part of `other`.

    The files are read once, a few megabytes at a time.

    Raises:
        UserError: a file is missing or damaged.
    """
    theirs = {part.name: part.file for part in other.frozen()}
    for part in base.frozen():
        if not part.keys:
            continue
        verdict = PartVerdict(part.name, len(part.keys))
        if part.name not in theirs:
            verdict.differing = [f"{key} (not there)" for key in part.keys]
            yield verdict
            continue
        with open_weights(part.file) as before, open_weights(theirs[part.name]) as after:
            for key in part.keys:
                verdict.bytes += before.tensor(key).nbytes
                if reason := difference(before, after, key):
                    verdict.differing.append(f"{key} ({reason})")
                elif before.dtype(key) != after.dtype(key):
                    verdict.wider = str(after.dtype(key)).removeprefix("torch.")
        yield verdict


def difference(before: Weights, after: Weights, key: str) -> str:
    """Why a tensor of one file is not that of another, in words; an empty string where it is.

    The same numbers in a wider dtype are the same tensor; in a narrower one they are not.
    """
    if key not in after.shapes:
        return "not there"
    if before.shapes[key] != after.shapes[key]:
        return f"{list(after.shapes[key])} instead of {list(before.shapes[key])}"
    old, new = before.dtype(key), after.dtype(key)
    if torch.promote_types(old, new) != new:
        return f"rounded, {str(new).removeprefix('torch.')} instead of {str(old).removeprefix('torch.')}"
    pieces = zip(
        before.tensor(key).reshape(-1).split(AT_ONCE), after.tensor(key).reshape(-1).split(AT_ONCE), strict=True
    )
    at = 0
    for ours, theirs in pieces:
        wide = ours.to(new)
        if not same_bits(wide, theirs):
            first = int((wide.view(torch.uint8) != theirs.view(torch.uint8)).nonzero()[0]) // new.itemsize
            return f"number {at + first} is {theirs[first].item():.8g} instead of {ours[first].item():.8g}"
        at += len(ours)
    return ""


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the last bit, NaN and the sign of zero included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def changed_besides(base: Model, other: Model) -> tuple[int, int]:
    """How many of the base's tensors that belong to no frozen part have other numbers in `other`, and how many there
    are: what training has changed.
    """
    parts, theirs = base.frozen(), {part.name: part.file for part in other.frozen()}
    frozen: dict[Path, set[str]] = {}
    files: dict[Path, Path] = {}
    for part in parts:
        frozen.setdefault(part.file, set()).update(part.keys)
        files[part.file] = theirs.get(part.name, part.file)
    changed = number = 0
    for file, keys in frozen.items():
        with open_weights(file) as before, open_weights(files[file]) as after:
            rest = before.shapes.keys() - keys
            number += len(rest)
            changed += sum(bool(difference(before, after, key)) for key in rest)
    return changed, number


def in_one_line(verdicts: list[PartVerdict], base: Path) -> str:
    """All verdicts on an export together, in one line."""
    if broken := [verdict for verdict in verdicts if verdict.differing]:
        return f"NOT as in {base}: {'; '.join(map(str, broken))}."
    counts = ", ".join(f"{verdict.tensors} of {verdict.name}" for verdict in verdicts)
    wider = next((verdict.wider for verdict in verdicts if verdict.wider), "")
    same = f"the same numbers as in {base}, stored as {wider}" if wider else f"byte-identical to {base}"
    return f"{sum(verdict.tensors for verdict in verdicts)} tensors are {same}: {counts}."
