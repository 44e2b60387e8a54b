"""Which steps were skipped because a number was not finite, and when that ends the run."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reca_fast.errors import UserError

NOTED_AT_MOST = 1024
"""Steps whose notes wait on the device before they are read without being asked for."""


class SkippedStep(NamedTuple):
    """A step that changed nothing."""

    step: int  # counted from 1
    not_finite: tuple[str, ...]  # which of its numbers were inf or NaN: loss_reca, ..., grad_norm


class SkippedSteps:
    """The steps of a run that were skipped. They are noted on the device, and read all at once when a line of metrics
    is due, so that no other step waits for the device.

    Args:
        limit: how many steps one after another may be skipped.
        in_a_row: how many the last ones were before this process began.
    """

    def __init__(self, limit: int, in_a_row: int = 0) -> None:
        self.limit, self.in_a_row = limit, in_a_row
        self.total = 0
        self._noted: list[tuple[int, Sequence[str], Tensor]] = []
        self._unread: list[SkippedStep] = []
        self._refusal = ""

    def note(self, step: int, names: Sequence[str], finite: Tensor) -> None:
        """Remember a step.

        Args:
            names: of the numbers that decide whether it was skipped.
            finite: bool [numbers], on the device, the same on every process.
        """
        self._noted.append((step, names, finite))
        if len(self._noted) == NOTED_AT_MOST:
            self._collect()

    def read(self) -> list[SkippedStep]:
        """The skipped ones among the steps noted since the last call. Waits for the device."""
        self._collect()
        unread, self._unread = self._unread, []
        return unread

    def check(self, advice: Callable[[], str]) -> None:
        """End the run when too many of the steps that were read were skipped one after another.

        Args:
            advice: says how to go on; all processes call it.

        Raises:
            UserError: more than `limit` were.
        """
        if self._refusal:
            never = "no update was made yet, so look at the weights in model.path and at the pictures"
            what = advice() if self._first > 1 else never
            raise UserError(f"{self._refusal}. No skipped step changed anything; {what}.")

    def _collect(self) -> None:
        if not self._noted:
            return
        flags = iter(torch.cat([finite for *_, finite in self._noted]).tolist())
        for step, names, _ in self._noted:
            not_finite = tuple([name for name in names if not next(flags)])
            self.in_a_row = self.in_a_row + 1 if not_finite else 0
            if not_finite:
                self.total += 1
                self._unread.append(SkippedStep(step, not_finite))
            if self.in_a_row > self.limit:
                self._first = step - self.in_a_row + 1
                steps = f"Steps {self._first} to {step} were" if self.in_a_row > 1 else f"Step {step} was"
                self._refusal = (
                    f"{steps} skipped because of inf or NaN in {' and '.join(not_finite)}, "
                    f"and optim.max_skipped_steps={self.limit} allows no more in a row"
                )
        self._noted.clear()
