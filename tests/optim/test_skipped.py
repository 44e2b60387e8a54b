"""Which steps were skipped, and when that ends a run."""

import pytest
import torch

from reca_fast.errors import UserError
from reca_fast.optim import SkippedStep, SkippedSteps, skipped

NAMES = ("loss_reca", "grad_norm")
FINE, NO_GRADIENT, NOTHING = [True, True], [True, False], [False, False]


def noted(limit: int, *steps: list[bool], in_a_row: int = 0, first: int = 1) -> SkippedSteps:
    notes = SkippedSteps(limit, in_a_row)
    for number, finite in enumerate(steps, first):
        notes.note(number, NAMES, torch.tensor(finite))
    return notes


def advice() -> str:
    return "resume from step 2"


def test_they_are_named_with_what_was_not_finite():
    notes = noted(5, FINE, NOTHING, FINE, NO_GRADIENT)
    assert notes.read() == [SkippedStep(2, ("loss_reca", "grad_norm")), SkippedStep(4, ("grad_norm",))]
    assert notes.read() == [] and notes.total == 2
    notes.check(advice)


def test_steps_have_terms_of_their_own():
    notes = SkippedSteps(5)
    notes.note(1, ("loss_reca", "loss_i2t", "grad_norm"), torch.tensor([True, False, False]))
    notes.note(2, ("loss_i2t", "grad_norm"), torch.tensor([False, True]))
    assert notes.read() == [SkippedStep(1, ("loss_i2t", "grad_norm")), SkippedStep(2, ("loss_i2t",))]


def test_more_in_a_row_than_allowed_end_the_run():
    notes = noted(2, FINE, FINE, NOTHING, NOTHING)
    notes.read()
    notes.check(advice)
    assert notes.in_a_row == 2
    notes.note(5, NAMES, torch.tensor(NO_GRADIENT))
    notes.check(advice)  # nobody has read it
    notes.read()
    with pytest.raises(UserError) as refusal:
        notes.check(advice)
    assert str(refusal.value) == (
        "Steps 3 to 5 were skipped because of inf or NaN in grad_norm, and optim.max_skipped_steps=2 allows no more "
        "in a row. No skipped step changed anything; resume from step 2."
    )


def test_it_does_not_matter_how_often_they_are_read():
    """Two too many in a row, then fine steps, all read at once: as if each had been read."""
    notes = noted(1, FINE, NOTHING, NOTHING, FINE)
    notes.read()
    with pytest.raises(UserError, match="Steps 2 to 3 were"):
        notes.check(advice)


def test_none_may_be_skipped():
    notes = noted(0, NOTHING, first=7)
    notes.read()
    with pytest.raises(UserError, match="Step 7 was skipped because of inf or NaN in loss_reca and grad_norm"):
        notes.check(advice)


def test_a_resumed_run_goes_on_counting():
    notes = noted(3, NOTHING, NOTHING, in_a_row=2, first=9)
    notes.read()
    with pytest.raises(UserError, match="Steps 7 to 10 were"):
        notes.check(advice)


def test_a_run_that_never_made_an_update_has_another_cause():
    notes = noted(1, NOTHING, NOTHING)
    notes.read()
    with pytest.raises(UserError, match=r"no update was made yet, so look at the weights in model\.path and at the pi"):
        notes.check(advice)


def test_notes_do_not_pile_up_on_the_device(monkeypatch):
    monkeypatch.setattr(skipped, "NOTED_AT_MOST", 3)
    notes = noted(5, FINE, NOTHING, FINE, FINE)
    assert len(notes._noted) == 1
    assert [each.step for each in notes.read()] == [2]
