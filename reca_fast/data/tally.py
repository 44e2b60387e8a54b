"""What was left out and why: things counted by reason, and records counted once however often they come round."""

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

EXAMPLES = 3  # names remembered per reason


@dataclass
class Reasons:
    """How many things met each reason, with a few of their names."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        remember(self.examples.setdefault(reason, []), [name])

    def merge(self, other: "Reasons", prefix: str) -> None:
        """Add another's, its names behind `prefix`."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            names = [name if name == prefix else f"{prefix}/{name}" for name in other.examples[reason]]
            remember(self.examples.setdefault(reason, []), names)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        return listed(self.counts, self.examples)


@dataclass
class Marked:
    """The records of one reason, JSON-able: one bit a record, compressed, and a few of their keys."""

    bits: str
    examples: list[str]


class Tally:
    """For each reason the set of records that met it, of a source of `records`; a bit each, so that millions fit."""

    def __init__(self, records: int) -> None:
        self._records = records
        self._bits: dict[str, bytearray] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, record: int, key: str) -> None:
        """Note that the record of this number and key met the reason."""
        self._of(reason)[record >> 3] |= 1 << (record & 7)
        remember(self._examples.setdefault(reason, []), [key])

    def merge(self, saved: Mapping[str, Marked]) -> None:
        """Add what another tally of the same source had marked. Raises ValueError when it is damaged."""
        for reason, marked in saved.items():
            bits = self._of(reason)
            decompressor = zlib.decompressobj()
            try:
                other = decompressor.decompress(base64.b64decode(marked.bits, validate=True), len(bits) + 1)
            except zlib.error as error:
                raise ValueError(f"marks of {reason!r} are damaged ({error})") from None
            if len(other) != len(bits):
                raise ValueError(f"marks of {reason!r} belong to another number of records")
            together = int.from_bytes(bits, "little") | int.from_bytes(other, "little")
            bits[:] = together.to_bytes(len(bits), "little")
            remember(self._examples.setdefault(reason, []), marked.examples)

    @property
    def counts(self) -> dict[str, int]:
        """How many records met each reason."""
        return {reason: int.from_bytes(bits, "little").bit_count() for reason, bits in self._bits.items()}

    @property
    def total(self) -> int:
        """How many records met any reason."""
        union = 0
        for bits in self._bits.values():
            union |= int.from_bytes(bits, "little")
        return union.bit_count()

    def state(self) -> dict[str, Marked]:
        """What `merge` takes."""
        return {
            reason: Marked(base64.b64encode(zlib.compress(bits, 1)).decode(), list(self._examples[reason]))
            for reason, bits in self._bits.items()
        }

    def __str__(self) -> str:
        return listed(self.counts, self._examples)

    def _of(self, reason: str) -> bytearray:
        return self._bits.setdefault(reason, bytearray(self._records + 7 >> 3))


def remember(examples: list[str], names: list[str]) -> None:
    """Add names to a short list of different ones."""
    examples += [name for name in map(printable, names) if name not in examples]
    del examples[EXAMPLES:]


def listed(counts: Mapping[str, int], examples: Mapping[str, list[str]]) -> str:
    """'2 x unreadable file (e.g. a.jpg, b.jpg); 1 x ...', sorted by reason."""
    return "; ".join(
        f"{count} x {reason} (e.g. {', '.join(examples[reason])})" for reason, count in sorted(counts.items())
    )


def printable(name: str) -> str:
    """The name of a file, its bytes that are not UTF-8 escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
