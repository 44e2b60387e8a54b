"""Sums over programs, in a fixed order and without a second launch: the last program to arrive adds what all have left.

A program stores its partial sums, calls `is_last`, and where that is true reads everybody's partials with
`cache_modifier=".cg"`: they are in L2, and this SM's L1 knows nothing of what other programs wrote. Where partials are
rows of many numbers, one program reading all of them would be a long tail: `sum_rows_over_programs` adds them in groups
of about the square root of their number, the last of each group its own, then the last group those sums.
"""

import math

import numpy as np
import torch
from torch import Tensor

from .optional_triton import tl, triton

_counters: dict[tuple[torch.device, int], Tensor] = {}


def counters(device: torch.device, count: int = 1) -> Tensor:
    """int32 [count or more] zeros that a kernel leaves at zero; kept per stream, as two streams may run at once."""
    if device.type == "cpu":  # interpreted: new ones cost nothing, and a kernel that raised leaves no trace
        return torch.from_numpy(np.zeros(count, np.int32))
    if torch.cuda.is_current_stream_capturing():  # memory of a graph, which nobody else may use
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = device, torch.cuda.current_stream(device).cuda_stream
    if key not in _counters or len(_counters[key]) < count:
        _counters[key] = torch.zeros(max(count, 64), dtype=torch.int32, device=device)
    return _counters[key]


def groups_of(programs: int) -> tuple[int, int]:
    """(programs of a group, groups) for `sum_rows_over_programs`."""
    members = math.isqrt(max(0, programs - 1)) + 1
    return members, -(-programs // members)


@triton.jit
def is_last(arrived, programs):
    """Whether this one of `programs` is the last; then it alone sets the counter `arrived` back."""
    tl.debug_barrier()  # every thread's stores before the one thread's release
    last = tl.atomic_add(arrived, 1, sem="acq_rel") == programs - 1
    if last:
        tl.store(arrived, 0)
    return last


@triton.jit
def sum_over_programs(value, partials, arrived, total, BLOCK: tl.constexpr):
    """total = sum of the scalar `value` over all programs of a one-dimensional grid."""
    programs = tl.num_programs(0)
    tl.store(partials + tl.program_id(0), value)
    if is_last(arrived, programs):
        sums = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, programs, BLOCK):
            place = start + tl.arange(0, BLOCK)
            sums += tl.load(partials + place, mask=place < programs, other=0.0, cache_modifier=".cg")
        tl.store(total, tl.sum(sums, axis=0))


@triton.jit
def _sum_rows(first, count, stride, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, count, ROWS):
        mask = (start + row < count) & (column < WIDTH)
        total += tl.load(first + (start + row) * stride + column, mask=mask, other=0.0, cache_modifier=".cg")
    return tl.sum(total, axis=0)


@triton.jit
def sum_rows_over_programs(partials, arrived, members, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """(whether this program is the last of all, and then the sum [COLUMNS] of the rows that all programs have stored).

    partials: [programs + groups, WIDTH] fp32, the groups' sums at the end; arrived: [1 + groups] counters;
    members: programs of a group. One-dimensional grid. ROWS are read at a time.
    """
    programs = tl.num_programs(0)
    groups = tl.cdiv(programs, members)
    group = tl.program_id(0) // members
    mine = tl.minimum(members, programs - group * members)
    column = tl.arange(0, COLUMNS)
    done = False
    total = tl.zeros((COLUMNS,), tl.float32)
    if is_last(arrived + 1 + group, mine):
        total = _sum_rows(partials + group * members * WIDTH, mine, WIDTH, WIDTH, COLUMNS, ROWS)
        tl.store(partials + (programs + group) * WIDTH + column, total, mask=column < WIDTH)
        done = is_last(arrived, groups)
        if done:
            total = _sum_rows(partials + programs * WIDTH, groups, WIDTH, WIDTH, COLUMNS, ROWS)
    return done, total
