"""Records that are left out: one at a time with the reason, and the end of the run when nothing else is left."""

from dataclasses import dataclass

from reca_fast.config import DataConfig
from reca_fast.data.tally import Reasons
from reca_fast.errors import UserError


@dataclass(frozen=True)
class Skip:
    """One visit to a record that left it out."""

    index: int
    epoch: int
    key: str
    reason: str
    tokens: int = 0  # of a sample that is too long
    lacks_caption: bool = False


class InVain:
    """Skips since the last usable record. They end the run after `visits` of them that met `records` different records:
    by then nothing usable is to be expected.
    """

    def __init__(self, records: int, visits: int, config: DataConfig) -> None:
        self._records, self._visits, self._config = records, visits, config
        self.clear()

    def clear(self) -> None:
        self._made, self._skips = 0, dict[int, Skip]()

    def add(self, skip: Skip) -> None:
        self._made += 1
        self._skips[skip.index] = skip
        if self._made >= self._visits and len(self._skips) >= self._records:
            raise UserError(nothing_usable(list(self._skips.values()), self._config))


def limits_below(tokens: int, config: DataConfig) -> list[str]:
    """The options that refuse a sample of so many tokens."""
    limits = ("max_tokens_per_sample", "tokens_per_pack")
    return [f"data.{option}" for option in limits if getattr(config, option) < tokens]


def nothing_usable(skipped: list[Skip], config: DataConfig) -> str:
    """The sentence that ends a run: what was wrong with the records, and the settings that would let some in."""
    reasons, ways = Reasons(), []
    for skip in skipped:
        reasons.add(skip.reason, skip.key)
    if lengths := [skip.tokens for skip in skipped if skip.tokens]:
        needed = min(lengths)
        options = " and ".join(limits_below(needed, config))
        ways.append(f"Raise {options} to at least {needed}, which the shortest sample needs.")
    if without_caption := sum(skip.lacks_caption for skip in skipped):
        ways.append("Add captions, or give data.tasks.reca a weight.")
    if len(lengths) + without_caption < len(skipped):
        ways.append("Check data.source.")
    if config.packs_per_step > 1 and not config.shuffle:
        ways.append(
            "Each of the data.packs_per_step has its own share of the records: with a lower number it is larger."
        )
    return f"None of {len(skipped)} records could be used: {reasons}. {' '.join(ways)}"
