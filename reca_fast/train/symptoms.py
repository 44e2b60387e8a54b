"""What a run shows of two faults that no error tells: its losses look good, and its pictures do not."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from reca_fast.evaluation.noise import is_noise
from reca_fast.evaluation.reconstruction import Reconstruction
from reca_fast.sample import RECA

COPIED_TOKENS, NOISE = "copied-tokens", "samples-are-noise"
LINES = 5
"""In so many lines of metrics, one after another, the loss must be nearly zero."""


class Symptom(NamedTuple):
    """A fault of a run, by its fixed name and in words with the remedy."""

    name: str
    sentence: str


class Symptoms:
    """Looks at losses and grids as they come.

    Args:
        copying_below: the loss of reca below which the model must be copying (`models.protocol.SaysTokens`); None where
            its loss does not tell.
    """

    def __init__(self, copying_below: float | None) -> None:
        self._copying_below = copying_below
        self._lines = 0  # with such a loss, up to now

    def of_losses(self, losses: Mapping[str, float | None]) -> list[Symptom]:
        """Those that the losses of a logged step show, by task; a loss is None in a step that was skipped."""
        loss = losses.get(RECA)
        if self._copying_below is None or loss is None:
            return []
        self._lines = self._lines + 1 if loss < self._copying_below else 0
        if self._lines < LINES:
            return []
        return [
            Symptom(
                COPIED_TOKENS,
                f"the cross-entropy of reca has come down to {loss:.3f}, nearly zero: the model copies codes of its "
                "condition into the target and learns nothing of what they mean. Give it a smaller condition "
                "(data.condition_resize, half the side of the target) or blur it (data.blur_sigma), and begin anew "
                "from the base.",
            )
        ]

    def of_grid(self, reconstructions: Sequence[Reconstruction]) -> list[Symptom]:
        """Those that a grid of reconstructions shows."""
        if not is_noise(reconstructions):
            return []
        return [
            Symptom(
                NOISE,
                "what the model draws is noise: neighbouring parts of its pictures are not alike. Draw the same with "
                "the base (reca-fast reconstruct). If that is noise too, its files or the sampling settings are wrong; "
                "if not, training spoils it: lower optim.lr, or lengthen optim.warmup_steps.",
            )
        ]
