"""What has to be seen for RECA's effect to count as shown, written down before any run."""

from collections.abc import Mapping
from dataclasses import dataclass

from reca_fast.evaluation.intervals import Estimate

Scores = Mapping[str, Estimate]
"""Scores by the names that `Measured.scores` has: a subtask, `overall`, or `dense.colour_layout` and the like."""


@dataclass(frozen=True)
class Gate:
    """One score that has to reach a bound after post-training."""

    score: str
    words: str
    at_least: float
    above_before: bool = False
    """Whether `at_least` is counted from the score before post-training."""

    def bound(self, before: Scores) -> float:
        """What the score has to reach."""
        return self.at_least + (before[self.score].value if self.above_before else 0.0)

    def is_met(self, before: Scores, after: Scores) -> bool:
        """Whether the score after post-training is higher than before and reaches the bound."""
        return after[self.score].value >= self.bound(before) and after[self.score].value > before[self.score].value


GATES = (
    Gate("dense", "fully specified prompts", 0.08),
    Gate("dense.colour_layout", "colours and places of fully specified prompts", 0.35),
    Gate("reconstruction", "reconstruction", 0.30),
    Gate("overall", "overall", 0.08, above_before=True),
)


def says_effect(before: Scores, after: Scores) -> tuple[bool, str]:
    """Whether every gate is met, and one sentence that says so or names what fell short."""
    short = [gate for gate in GATES if not gate.is_met(before, after)]
    if not short:
        layout, again = (
            [side[name].value for side in (before, after)] for name in ("dense.colour_layout", "reconstruction")
        )
        return True, (
            f"RECA's effect shows: after post-training on pictures without captions, {layout[1]:.0%} of two-object "
            f"prompts come out in the colours and places that they name (before: {layout[0]:.0%}), and {again[1]:.0%} "
            f"of pictures are drawn again exactly (before: {again[0]:.0%})."
        )
    missed = "; ".join(
        f"{gate.words} {after[gate.score].value:.2f}, wanted at least {gate.bound(before):.2f} and more than the "
        f"{before[gate.score].value:.2f} before"
        for gate in short
    )
    return False, f"RECA's effect does not show: {missed}."
