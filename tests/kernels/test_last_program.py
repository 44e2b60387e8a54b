"""Sums over programs in the same launch: every program's row counts once, whatever the number of programs."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from reca_fast.kernels.common.interpreter import interpreting
from reca_fast.kernels.common.last_program import counters, groups_of, sum_over_programs, sum_rows_over_programs
from reca_fast.kernels.common.optional_triton import tl, triton


@triton.jit
def _rows(source, partials, arrived, out, finished, members, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    row = tl.load(source + tl.program_id(0) * WIDTH + column, mask=column < WIDTH, other=0.0)
    tl.store(partials + tl.program_id(0) * WIDTH + column, row, mask=column < WIDTH)
    done, total = sum_rows_over_programs(partials, arrived, members, WIDTH, COLUMNS, 2)
    if done:
        tl.store(out + column, total, mask=column < WIDTH)
        tl.store(finished, tl.load(finished) + 1)


@triton.jit
def _numbers(source, partials, arrived, total):
    sum_over_programs(tl.load(source + tl.program_id(0)), partials, arrived, total, 4)


@pytest.mark.parametrize("programs", [1, 2, 3, 4, 5, 9, 10, 17, 36, 37])
def test_rows_are_summed_by_the_last_program(programs: int) -> None:
    members, groups = groups_of(programs)
    assert (groups - 1) * members < programs <= groups * members
    assert groups <= members  # neither level is much longer than the other
    source = torch.randint(-8, 8, (programs, 6)).float()
    partials, out = torch.full((programs + groups, 6), torch.nan), torch.full((6,), torch.nan)
    arrived, finished = counters(source.device, 1 + groups), torch.zeros(1)
    with interpreting():
        for times in (1, 2):  # the counters are back at zero after a launch
            _rows[(programs,)](source, partials, arrived, out, finished, members, WIDTH=6, COLUMNS=8)
            assert torch.equal(out, source.sum(0)) and finished == times
            assert not arrived.any()


@pytest.mark.parametrize("programs", [1, 3, 4, 5, 16, 17])
def test_numbers_are_summed_by_the_last_program(programs: int) -> None:
    source, partials, total = torch.randint(-8, 8, (programs,)).float(), torch.empty(programs), torch.empty(())
    arrived = counters(source.device)
    with interpreting():
        _numbers[(programs,)](source, partials, arrived, total)
    assert total == source.sum() and not arrived.any()
