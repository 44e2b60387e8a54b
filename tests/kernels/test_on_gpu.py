"""On a machine with a GPU: its own kernels against the authors' sequences, and what only concurrency can break.

Without one, every other file of this folder has interpreted and compiled the same kernels. The checks are those of
`bench/on_gpu.py --only kernels`.
"""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from bench.gpu_stages import kernels
from bench.measure import TOLERANCE, disagreement, fresh, under
from bench.ops import NAMES, WITH_KERNELS, case_of
from reca_fast.kernels.common.implementation import why_not_triton

WHY_NOT = why_not_triton(torch.device("cuda")) if torch.cuda.is_available() else "there is no NVIDIA GPU"
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
GPU = torch.device("cuda")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_authors(name: str, dtype: torch.dtype) -> None:
    case = case_of(name)
    ours = case.ours if case.compile is None else under("triton", case.ours)
    inputs = fresh(case, case.shapes["small"], dtype, GPU)
    assert disagreement(ours(inputs), case.eager(inputs)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", kernels.DTYPES, ids=str)
@pytest.mark.parametrize("name", WITH_KERNELS)
def test_as_near_to_float64_as_the_dtype_allows(name: str, dtype: torch.dtype) -> None:
    assert max(kernels.shares_of_budget(case_of(name), dtype, GPU)) <= 1


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_same_bits_every_time(name: str) -> None:
    """Sums over programs have a fixed order, whichever program finishes last."""
    assert kernels.differing_runs(case_of(name), GPU) == 0


def test_sums_of_many_programs() -> None:
    """Thousands of programs, of which the last adds up what all have left."""
    assert max(kernels.errors_of_long_sums(GPU).values()) <= kernels.LONG_SUMS


def test_two_streams_at_once() -> None:
    """Each stream has counters of its own."""
    assert kernels.differing_on_two_streams(GPU) == 0


def test_labels_on_the_gpu() -> None:
    """Nothing waits for them, and rows that are ignored take no part."""
    assert kernels.error_with_labels_on_the_device(GPU) <= 1
