"""Every public operation refuses what it cannot use by a ValueError that names an argument, whatever argument it is."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import reca_fast.kernels as kernels
from tests.kernels.examples import examples

GOOD = examples()
ARGUMENTS = [pytest.param(op, name, id=f"{op}-{name}") for op in GOOD for name in GOOD[op]]


def function(name: str) -> Callable[..., Any]:
    return getattr(kernels, name)


def refuses(op: str, **changed: Any) -> None:
    """By the name of an argument of the operation (of two that do not fit together, either), or of a part of one."""
    with pytest.raises(ValueError) as refused:
        function(op)(**(GOOD[op] | changed))
    names = {*inspect.signature(function(op)).parameters, "cu_seqlens_q"}
    named = re.match(r"[a-z0-9_, ]+", str(refused.value))
    assert named and set(named[0].split(", ")) <= names, refused.value


@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
def test_what_is_no_tensor_of_numbers(op: str, name: str) -> None:
    given = GOOD[op][name]
    for wrong in (object(), torch.zeros(1, 1, 1, 1, 1, dtype=torch.complex64), torch.zeros((), dtype=torch.bool)):
        refuses(op, **{name: wrong})
    if isinstance(given, Tensor):
        refuses(op, **{name: [1.0]})
        if sum(isinstance(x, Tensor) for x in GOOD[op].values()) > 1:  # one alone may be anywhere
            refuses(op, **{name: given.to("meta")})
        refuses(op, **{name: given.unsqueeze(-1).expand(*given.shape, 3)})


@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
def test_integers_for_floats_and_floats_for_integers(op: str, name: str) -> None:
    given = GOOD[op][name]
    if name == "row_weight" or not isinstance(given, Tensor):
        pytest.skip("row weights may be integers; other arguments that are not tensors have no dtype")
    refuses(op, **{name: given.long() if given.is_floating_point() else given.float()})


@pytest.mark.parametrize(
    ("op", "name"), [("swiglu", "up"), ("qk_norm_rope", "k"), ("varlen_attention", "k"), ("varlen_attention", "v")]
)
def test_mixed_dtypes_are_refused_by_name(op: str, name: str) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        refuses(op, **{name: GOOD[op][name].to(dtype)})


@pytest.mark.parametrize("op", [op for op in GOOD if "eps" in inspect.signature(function(op)).parameters])
def test_an_eps_that_is_none_is_refused_by_name(op: str) -> None:
    for eps in (-1e-6, float("nan"), float("inf"), None, "1e-6", True):
        refuses(op, eps=eps)
