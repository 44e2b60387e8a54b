"""What became of every record: used, skipped for a reason, or used for reca because its caption is missing.

A record counts once, although every epoch visits it: as used when any epoch used it, otherwise as skipped. Each lane
keeps its own `Outcomes`, which are saved with a run and added up for the line that training prints at its end.
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from reca_fast.data.reasons import Reasons, listed, remember
from reca_fast.data.samples import SamplePlan
from reca_fast.data.skips import Skip
from reca_fast.schema import Range

Count = Annotated[int, Range(0, 2**53)]


@dataclass
class SavedRecords:
    """The records that met one reason, as they stand in JSON."""

    records: str  # a RecordSet, encoded
    examples: list[str]  # keys of a few of them


@dataclass
class SavedOutcomes:
    """The outcomes of a lane as they stand in JSON."""

    samples: Count
    used: str  # a RecordSet, encoded
    skipped: dict[str, SavedRecords]
    without_caption: dict[str, SavedRecords]


class Outcomes:
    """What became of the records that one lane has visited, up to the last pack that was handed out.

    Args:
        records: number of records in the source.
    """

    def __init__(self, records: int) -> None:
        self.samples = 0
        self._used = RecordSet(records)
        self._skipped, self._without_caption = RecordsByReason(records), RecordsByReason(records)

    def skip(self, skip: Skip) -> None:
        """Note that a record was left out."""
        self._skipped.add(skip.reason, skip.index, skip.key)

    def use(self, plans: Sequence[SamplePlan]) -> None:
        """Count the samples of a pack that is handed out, and their records."""
        for plan in plans:
            self.samples += 1
            self._used.add(plan.index)
            if plan.lack:
                self._without_caption.add(plan.lack, plan.index, plan.key)

    def state(self) -> SavedOutcomes:
        """What `merge` takes."""
        by_reason = self._skipped.state(), self._without_caption.state()
        return SavedOutcomes(self.samples, self._used.encoded(), *by_reason)

    def merge(self, saved: SavedOutcomes) -> None:
        """Add those of another lane, or of the run that is resumed.

        Raises:
            ValueError: they are damaged, or belong to a source with another number of records.
        """
        self.samples += saved.samples
        self._used.merge(saved.used)
        self._skipped.merge(saved.skipped)
        self._without_caption.merge(saved.without_caption)

    def __str__(self) -> str:
        used = self._used.mask
        skipped, reasons = self._skipped.among(~used)
        line = f"{used.bit_count()} records used ({self.samples} samples), {skipped} skipped"
        line += f": {reasons}" if skipped else ""
        sometimes, reasons = self._skipped.among(used)
        line += f"; {sometimes} used in some epochs, skipped in others: {reasons}" if sometimes else ""
        fallbacks, reasons = self._without_caption.among(used)
        return f"{line}; {fallbacks} served reca for want of a caption: {reasons}" if fallbacks else line


@dataclass(frozen=True)
class Report:
    """The outcomes in one process, for `describe`."""

    records: int  # in the source
    lanes: list[SavedOutcomes]  # of the lanes that the process serves
    ignored: Reasons  # files in the source that are no records


def describe(reports: Sequence[Report]) -> str:
    """One line that sums up the reports of every process."""
    together = Outcomes(reports[0].records)
    for report in reports:
        for lane in report.lanes:
            together.merge(lane)
    ignored = reports[0].ignored  # all processes read the same source
    return f"{together}; ignored: {ignored}" if ignored else str(together)


class RecordSet:
    """A set of record numbers below `records`. It takes one bit for each, so sets of millions stay small."""

    def __init__(self, records: int) -> None:
        self._bits = bytearray(records + 7 >> 3)

    def add(self, record: int) -> None:
        self._bits[record >> 3] |= 1 << (record & 7)

    def merge(self, text: str) -> None:
        """Add the numbers of another set, given as its `encoded` text.

        Raises:
            ValueError: the text is damaged, or the set is one of another number of records.
        """
        decompressor = zlib.decompressobj()
        try:
            bits = decompressor.decompress(base64.b64decode(text, validate=True), len(self._bits) + 1)
        except zlib.error as error:
            raise ValueError(f"a set of records cannot be read ({error})") from None
        if len(bits) != len(self._bits):
            raise ValueError("a set of records belongs to another number of records")
        self._bits[:] = (self.mask | int.from_bytes(bits, "little")).to_bytes(len(bits), "little")

    def encoded(self) -> str:
        """The set as text: its bits, compressed with zlib, in base64."""
        return base64.b64encode(zlib.compress(self._bits, 1)).decode()

    @property
    def mask(self) -> int:
        """The set as one integer, whose bit n says whether record n is in it."""
        return int.from_bytes(self._bits, "little")


class RecordsByReason:
    """For each reason, the set of records that met it and the keys of a few of them.

    Args:
        records: number of records in the source.
    """

    def __init__(self, records: int) -> None:
        self._records = records
        self._sets: dict[str, RecordSet] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, record: int, key: str) -> None:
        """Note that the record with this number and key met the reason."""
        self._of(reason).add(record)
        remember(self._examples.setdefault(reason, []), [key])

    def merge(self, saved: Mapping[str, SavedRecords]) -> None:
        """Add what another one, about the same source, has noted. Raises ValueError when it is damaged."""
        for reason, met in saved.items():
            self._of(reason).merge(met.records)
            remember(self._examples.setdefault(reason, []), met.examples)

    def state(self) -> dict[str, SavedRecords]:
        """What `merge` takes."""
        return {
            reason: SavedRecords(each.encoded(), list(self._examples[reason])) for reason, each in self._sets.items()
        }

    def among(self, mask: int) -> tuple[int, str]:
        """How many of the records in `mask` (see `RecordSet.mask`) met any reason, and those reasons in words."""
        masks = {reason: met for reason, each in self._sets.items() if (met := each.mask & mask)}
        together = 0
        for met in masks.values():
            together |= met
        counts = {reason: met.bit_count() for reason, met in masks.items()}
        return together.bit_count(), listed(counts, self._examples)

    def _of(self, reason: str) -> RecordSet:
        return self._sets.setdefault(reason, RecordSet(self._records))
