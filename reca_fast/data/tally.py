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


class RecordSet:
    """Record numbers below `records`; a bit each, so that millions fit."""

    def __init__(self, records: int) -> None:
        self._bits = bytearray(records + 7 >> 3)

    def add(self, record: int) -> None:
        self._bits[record >> 3] |= 1 << (record & 7)

    def merge(self, text: str) -> None:
        """Add those of another set, from its `encoded`. Raises ValueError when it is damaged or of other data."""
        decompressor = zlib.decompressobj()
        try:
            bits = decompressor.decompress(base64.b64decode(text, validate=True), len(self._bits) + 1)
        except zlib.error as error:
            raise ValueError(f"a set of records cannot be read ({error})") from None
        if len(bits) != len(self._bits):
            raise ValueError("a set of records belongs to another number of records")
        self._bits[:] = (self.mask | int.from_bytes(bits, "little")).to_bytes(len(bits), "little")

    def encoded(self) -> str:
        return base64.b64encode(zlib.compress(self._bits, 1)).decode()

    @property
    def mask(self) -> int:
        """The set as a number, record n as its bit n."""
        return int.from_bytes(self._bits, "little")


@dataclass
class Marked:
    """The records of one reason, JSON-able."""

    records: str  # a RecordSet, encoded
    examples: list[str]


class Tally:
    """For each reason the set of records that met it, with a few of their keys."""

    def __init__(self, records: int) -> None:
        self._records = records
        self._sets: dict[str, RecordSet] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, record: int, key: str) -> None:
        """Note that the record of this number and key met the reason."""
        self._of(reason).add(record)
        remember(self._examples.setdefault(reason, []), [key])

    def merge(self, saved: Mapping[str, Marked]) -> None:
        """Add what another tally of the same source had marked. Raises ValueError when it is damaged."""
        for reason, marked in saved.items():
            self._of(reason).merge(marked.records)
            remember(self._examples.setdefault(reason, []), marked.examples)

    def state(self) -> dict[str, Marked]:
        """What `merge` takes."""
        return {reason: Marked(each.encoded(), list(self._examples[reason])) for reason, each in self._sets.items()}

    def among(self, mask: int) -> tuple[int, str]:
        """(how many of the records in the mask met any reason, the reasons in words)."""
        masks = {reason: met for reason, each in self._sets.items() if (met := each.mask & mask)}
        together = 0
        for met in masks.values():
            together |= met
        counts = {reason: met.bit_count() for reason, met in masks.items()}
        return together.bit_count(), listed(counts, self._examples)

    def _of(self, reason: str) -> RecordSet:
        return self._sets.setdefault(reason, RecordSet(self._records))


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
