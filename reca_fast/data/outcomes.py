"""What became of the records: used, skipped for a reason, or used for another task for lack of a caption.

A record counts once, although every epoch visits it, and as used when it was never skipped. The first epoch visits each
record exactly once, over all lanes, so its visits are counted and the skipped records taken off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from reca_fast.data.samples import SamplePlan
from reca_fast.data.tally import Marked, Reasons, Tally
from reca_fast.schema import Range

Count = Annotated[int, Range(at_least=0, at_most=2**53)]


@dataclass(frozen=True)
class Skip:
    """One visit to a record that left it out."""

    index: int
    epoch: int
    key: str
    reason: str
    tokens: int = 0  # of a sample that is too long
    lacks_caption: bool = False


@dataclass
class SavedOutcomes:
    """The outcomes of a lane as they stand in JSON."""

    packs: Count
    samples: Count
    visited: Count
    skipped: dict[str, Marked]
    without_caption: dict[str, Marked]


class Outcomes:
    """Those of one lane, up to the last pack that was handed out."""

    def __init__(self, records: int, shares_records: bool) -> None:
        """`shares_records`: another lane takes the same records, because there are more lanes than records."""
        self.packs = self.samples = self._visited = 0
        self._shares_records = shares_records
        self.skipped, self._without_caption = Tally(records), Tally(records)

    def skip(self, skip: Skip) -> None:
        self._visit(skip.epoch)
        self.skipped.add(skip.reason, skip.index, skip.key)

    def use(self, plan: SamplePlan) -> None:
        self._visit(plan.epoch)
        self.samples += 1
        if plan.lack:
            self._without_caption.add(plan.lack, plan.index, plan.key)

    def state(self) -> SavedOutcomes:
        marks = self.skipped.state(), self._without_caption.state()
        return SavedOutcomes(self.packs, self.samples, self._visited, *marks)

    def load(self, saved: SavedOutcomes) -> None:
        """Go on counting from there. Raises ValueError when the marks belong to other data."""
        self.packs, self.samples, self._visited = saved.packs, saved.samples, saved.visited
        self.skipped.merge(saved.skipped)
        self._without_caption.merge(saved.without_caption)

    def _visit(self, epoch: int) -> None:
        self._visited += epoch == 0 and not self._shares_records


@dataclass(frozen=True)
class Report:
    """What `describe` says of one process."""

    records: int  # of the source
    lanes: list[SavedOutcomes]
    ignored: Reasons


def describe(reports: Sequence[Report]) -> str:
    """One line that sums up the reports of every process."""
    skipped, without_caption = Tally(reports[0].records), Tally(reports[0].records)
    lanes = [lane for report in reports for lane in report.lanes]
    for lane in lanes:
        skipped.merge(lane.skipped)
        without_caption.merge(lane.without_caption)
    used = sum(lane.visited for lane in lanes) - skipped.total
    line = f"{used} records used ({sum(lane.samples for lane in lanes)} samples), {skipped.total} skipped"
    if skipped.total:
        line += f": {skipped}"
    if without_caption.total:
        line += f"; {without_caption.total} served reca for want of a caption: {without_caption}"
    ignored = reports[0].ignored  # all processes read the same source
    return f"{line}; ignored: {ignored}" if ignored else line
