"""Sums over programs, in a fixed order and without a second launch: the program that finishes last adds up what all
left.

A program stores its partial sum and calls `is_last`. Where that is true, it reads everybody's partial sums, with
`cache_modifier=".cg"`: they are in the L2 cache, and the L1 cache of its SM does not know what other programs wrote.

Where partial sums are rows of many numbers, one program that reads all of them would keep the whole launch waiting. So
`sum_rows_over_programs` works in two steps: programs form groups of about the square root of their number, the last
program of each group adds up the group, and the last group to finish adds up the groups' sums.
"""

import math

import numpy as np
import torch
from torch import Tensor

from .optional_triton import tl, triton

_counters: dict[tuple[torch.device, int], Tensor] = {}


def counters(device: torch.device, count: int = 1) -> Tensor:
    """int32 [count or more], zeros, which a kernel counts up and sets back to zero.

    They are kept and used again by the next kernel of the same stream. Two streams may compute at once, so each has its
    own.
    """
    if device.type == "cpu":  # interpreted: new ones cost nothing, and a kernel that raised would leave its counts
        return torch.from_numpy(np.zeros(count, np.int32))
    if torch.cuda.is_current_stream_capturing():  # a graph's own memory, which nobody else may use
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = device, torch.cuda.current_stream(device).cuda_stream
    if key not in _counters or len(_counters[key]) < count:
        _counters[key] = torch.zeros(max(count, 64), dtype=torch.int32, device=device)
    return _counters[key]


def groups_of(programs: int) -> tuple[int, int]:
    """How many programs form a group in `sum_rows_over_programs`, and how many groups there are."""
    members = math.isqrt(max(0, programs - 1)) + 1
    return members, -(-programs // members)


@triton.jit
def is_last(arrived, programs):
    """Whether this program is the last of `programs` to call this; it then sets the counter `arrived` back to zero."""
    tl.debug_barrier()  # the stores of all threads come before the one thread's atomic addition
    last = tl.atomic_add(arrived, 1, sem="acq_rel") == programs - 1
    if last:
        tl.store(arrived, 0)
    return last


@triton.jit
def sum_over_programs(value, partials, arrived, total, BLOCK: tl.constexpr):
    """total [] = the sum of the scalar `value` over all programs of a one-dimensional grid.

    partials: [programs] fp32; arrived: a counter, see `counters`.
    """
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
    """Whether this program is the last of all, and if it is, the sum [COLUMNS] of the rows that all programs stored.

    The grid is one-dimensional, and program i has stored row i of `partials` before.

    partials: [programs + groups, WIDTH] fp32; its last rows receive the groups' sums.
    arrived: [1 + groups] counters, see `counters`.
    members: programs of a group, see `groups_of`.
    ROWS: how many rows are read at a time.
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
