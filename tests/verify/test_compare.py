"""Verdicts on computed tensors."""

import math

import pytest
import torch

from reca_fast.verify.compare import compare, relative_error


def test_the_error_is_relative_to_the_largest_entry() -> None:
    recorded = torch.tensor([1.0, -4.0])
    assert relative_error(torch.tensor([1.5, -4.0]), recorded) == 0.125
    assert relative_error(recorded, recorded) == 0
    assert relative_error(torch.zeros(0, 3), torch.zeros(0, 3)) == 0
    assert relative_error(torch.full((2,), 1e-9), torch.zeros(2)) > 1e20  # recorded zeros forgive nothing


@pytest.mark.parametrize("computed", [math.nan, math.inf])
def test_what_is_not_finite_never_agrees(computed) -> None:
    (verdict,) = compare({"a": torch.ones(1)}, {"a": torch.tensor([computed])}, lambda name: 1e9)
    assert not verdict.agrees


def test_verdicts_tell_errors_beside_their_limits() -> None:
    recorded = {name: torch.full((2,), 2.0) for name in ("exact", "near", "far", "absent", "misshapen")}
    computed = {"misshapen": torch.zeros(3), "far": torch.tensor([2.0, 2.1]), "near": torch.tensor([2.0, 2.01])}
    computed |= {"exact": torch.full((2,), 2.0), "unasked": torch.zeros(1)}
    verdicts = compare(recorded, computed, lambda name: 0.0 if name == "exact" else 0.01)
    assert [(verdict.name, verdict.agrees) for verdict in verdicts] == [
        *(("exact", True), ("near", True)),
        *(("far", False), ("absent", False), ("misshapen", False)),
    ]
    assert [str(verdict) for verdict in verdicts] == [
        "ok    exact  [2]  0.00e+00 (limit 0e+00)",
        "ok    near  [2]  5.00e-03 (limit 1e-02)",
        "FAIL  far  [2]  5.00e-02 (limit 1e-02)",
        "FAIL  absent  not computed",
        "FAIL  misshapen  [3], not [2]",
    ]
