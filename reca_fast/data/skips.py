"""One record that was left out, and the end of the run when there is nothing but such records.

What all the skips of a run add up to is kept in `outcomes.py`.
"""

from dataclasses import dataclass

from reca_fast.config import DataConfig
from reca_fast.data.reasons import Reasons
from reca_fast.errors import UserError


@dataclass(frozen=True)
class Skip:
    """A record that one epoch left out."""

    index: int  # number of the record in its source
    epoch: int
    key: str
    reason: str  # a short fixed phrase
    tokens: int = 0  # what the sample would take, if it was left out for being too long
    lacks_caption: bool = False  # whether it was left out because its task needs a caption


class Patience:
    """Ends the run when no usable record has come for so long that none is to be expected.

    Args:
        records: how many different records must have been skipped since the last usable one.
        visits: how many skips there must have been, counting a record again in each epoch.
        config: for the settings that the last sentence names.
        setting: that leads to the records.
    """

    def __init__(self, records: int, visits: int, config: DataConfig, setting: str) -> None:
        self._records, self._visits, self._config, self._setting = records, visits, config, setting
        self.clear()

    def clear(self) -> None:
        """A usable record has come: begin to count again."""
        self._made, self._skips = 0, dict[int, Skip]()

    def add(self, skip: Skip) -> None:
        """Count a skip. Raises UserError when both limits are reached."""
        self._made += 1
        self._skips[skip.index] = skip
        if self._made >= self._visits and len(self._skips) >= self._records:
            raise UserError(nothing_usable(list(self._skips.values()), self._config, self._setting))


def limits_below(tokens: int, config: DataConfig) -> list[str]:
    """The options whose limit a sample of `tokens` tokens exceeds, for messages."""
    limits = ("max_tokens_per_sample", "tokens_per_pack")
    return [f"data.{option}" for option in limits if getattr(config, option) < tokens]


def _without_captions(config: DataConfig) -> str:
    if config.mix == "pack":  # where no sample of another task becomes one of reca
        return "give the tasks that need them no weight"
    return "give data.tasks.reca a weight"


def nothing_usable(skipped: list[Skip], config: DataConfig, setting: str) -> str:
    """The sentence that ends a run: what was wrong with the records, and the settings that would let some in."""
    reasons, ways = Reasons(), []
    for skip in skipped:
        reasons.add(skip.reason, skip.key)
    if lengths := [skip.tokens for skip in skipped if skip.tokens]:
        needed = min(lengths)
        options = " and ".join(limits_below(needed, config))
        ways.append(f"Raise {options} to at least {needed}, which the shortest sample needs.")
    if without_caption := sum(skip.lacks_caption for skip in skipped):
        ways.append(f"Add captions, or {_without_captions(config)}.")
    if len(lengths) + without_caption < len(skipped):
        ways.append(f"Check {setting}.")
    if config.packs_per_step > 1 and not config.shuffle:
        ways.append(
            "Each of the data.packs_per_step has its own share of the records: with a lower number it is larger."
        )
    return f"None of {len(skipped)} records could be used: {reasons}. {' '.join(ways)}"
