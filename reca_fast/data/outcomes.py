"""What became of the records: used, skipped for a reason, or used for another task for lack of a caption.

A record counts once, although every epoch visits it: as used when it was used in any.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from reca_fast.data.samples import SamplePlan
from reca_fast.data.skips import Skip
from reca_fast.data.tally import Marked, Reasons, RecordSet, Tally
from reca_fast.schema import Range

Count = Annotated[int, Range(at_least=0, at_most=2**53)]


@dataclass
class SavedOutcomes:
    """The outcomes of a lane as they stand in JSON."""

    packs: Count
    samples: Count
    used: str  # a RecordSet, encoded
    skipped: dict[str, Marked]
    without_caption: dict[str, Marked]


class Outcomes:
    """Those of one lane, up to the last pack that was handed out, among `records` records of all lanes."""

    def __init__(self, records: int) -> None:
        self.packs = self.samples = 0
        self._used, self._skipped, self._without_caption = RecordSet(records), Tally(records), Tally(records)

    def skip(self, skip: Skip) -> None:
        self._skipped.add(skip.reason, skip.index, skip.key)

    def use(self, plans: Sequence[SamplePlan]) -> None:
        """Count a pack that is handed out, and the records of its samples."""
        self.packs += 1
        for plan in plans:
            self.samples += 1
            self._used.add(plan.index)
            if plan.lack:
                self._without_caption.add(plan.lack, plan.index, plan.key)

    def state(self) -> SavedOutcomes:
        tallies = self._skipped.state(), self._without_caption.state()
        return SavedOutcomes(self.packs, self.samples, self._used.encoded(), *tallies)

    def load(self, saved: SavedOutcomes) -> None:
        """Add those of another lane or run. Raises ValueError when they are damaged or belong to other data."""
        self.packs += saved.packs
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
    """What `describe` says of one process."""

    records: int  # of the source
    lanes: list[SavedOutcomes]
    ignored: Reasons


def describe(reports: Sequence[Report]) -> str:
    """One line that sums up the reports of every process."""
    together = Outcomes(reports[0].records)
    for report in reports:
        for lane in report.lanes:
            together.load(lane)
    ignored = reports[0].ignored  # all processes read the same source
    return f"{together}; ignored: {ignored}" if ignored else str(together)
