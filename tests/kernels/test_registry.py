"""An operation is entered in one place, and everything that goes through all operations finds it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.ops import NAMES, WITH_KERNELS, case_of
from reca_fast import kernels
from reca_fast.kernels import OPERATIONS, costs
from reca_fast.kernels.common.registry import Cost, operation
from reca_fast.kernels.common.torch_op import torch_op
from tests.kernels.examples import examples
from tests.places import ROOT

TESTS = "".join(path.read_text() for path in (ROOT / "tests" / "kernels").glob("test_*.py"))
FOLDERS = {page.parent.name for page in (ROOT / "kernels" / "ops").glob("*/__init__.py")} - {"common"}


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """An operation that is entered for one test."""
    monkeypatch.setattr("reca_fast.kernels.common.registry.OPERATIONS", entered := dict(OPERATIONS))
    monkeypatch.setattr(costs, "OPERATIONS", entered)

    @torch_op("test_registry_doubled")
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x @ (2 * torch.eye(x.shape[1]))

    def cost(*, rows: int, width: int, itemsize: int = 2) -> Cost:
        return Cost(2 * itemsize * rows * width, 2 * rows * width**2)

    def product(x: torch.Size, **_: Any) -> int:
        return 2 * x[0] * x[1] ** 2

    operation("doubled", functions=[doubled._init_fn], cost=cost, flops={"test_registry_doubled": product})
    return doubled


def test_one_entry_is_enough(doubled: Callable[..., Any]) -> None:
    """For the planner and for torch's FLOP counter; a second one by that name is a mistake."""
    assert costs.doubled(rows=3, width=4) == Cost(48, 96)
    with FlopCounterMode(display=False) as counter:
        doubled(torch.ones(3, 4))
    assert counter.get_total_flops() == 96
    with pytest.raises(ValueError, match="'doubled' is entered twice"):
        operation("doubled", functions=[], cost=costs.doubled)


def test_every_folder_enters_the_operation_of_its_name() -> None:
    assert OPERATIONS.keys() == FOLDERS


def test_public_functions_are_exported() -> None:
    public = [name for entered in OPERATIONS.values() for name in entered.functions]
    assert len(public) == len(set(public))
    assert set(public) < set(kernels.__all__)
    assert all(callable(getattr(kernels, name)) for name in kernels.__all__ if name != "BACKENDS")


def test_an_unknown_cost_names_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no operation 'qk_norm'; there are .*qk_norm_rope"):
        costs.qk_norm  # noqa: B018


def test_every_benchmark_belongs_to_an_operation() -> None:
    files = {path.stem for path in Path(ROOT, "bench", "ops").glob("*.py")} - {"__init__", "case"}
    assert files == set(NAMES)
    assert all(case_of(name).name == name for name in NAMES)


def test_whoever_has_kernels_has_a_benchmark_that_compiles_them() -> None:
    assert set(WITH_KERNELS) == {name for name, entered in OPERATIONS.items() if entered.computed_by == "triton"}
    assert [name for name in NAMES if case_of(name).compile is not None] == list(WITH_KERNELS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_examples_tests_and_a_paragraph(name: str) -> None:
    functions = OPERATIONS[name].functions
    assert set(functions) <= examples().keys()
    assert all(re.search(rf"\b{function}\b", TESTS) for function in functions), "no test of tests/kernels names it"
    page = (ROOT / "docs" / "kernels.md").read_text()
    assert all(f"`{function}`" in page for function in functions), "docs/kernels.md does not name it"
