"""Triton kernel of `blur_patchify` and the function that launches it; contract.py says what it computes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.image_filter import PRECISION
from ..common.image_plan import Preparation, addresses, packed, plan
from ..common.optional_triton import LAUNCH, tl, triton

ROWS = 16
"""Output lines of one program, and source rows that it filters at a time: the smallest side of a matrix product."""
WARPS = 16
"""So that a thread has 8 accumulators. With fewer warps, the registers leave room for an eighth of the warps."""

FIELDS: Any = tl.constexpr(11)  # numbers of a picture in Plan.images
HALF: Any = tl.constexpr(1 << (PRECISION - 1))
SHIFT: Any = tl.constexpr(PRECISION)


@triton.jit
def filtered_tile(
    addresses,
    images,
    tables,
    image,
    line,
    lines,
    column,
    columns,
    BY: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
):
    """Resized pixels [BY, BC] as int32: the output lines from `line` on, `lines` of them, and in each the numbers
    (columns times channels) from `column` on, `columns` of them.

    The names are those of a picture whose width is filtered first. Of a picture whose height is filtered first, the
    axes are exchanged.

    Source rows are filtered across in blocks of BR, tap by tap, and rounded. The filter down is a matrix product of its
    weights with these rows. That is exact: a weight is split into two parts of at most 11 bits and a sign, which fp16
    holds, a pixel has 8 bits, and fp32 holds the sum of 16 products.
    """
    about = images + image * FIELDS
    source = tl.load(addresses + 3 * image).to(tl.pointer_type(tl.uint8))
    stride, step = tl.load(addresses + 3 * image + 1), tl.load(addresses + 3 * image + 2)
    across_starts, across_weights, across_taps = tl.load(about + 2), tl.load(about + 3), tl.load(about + 4)
    down_starts, down_weights, down_taps = tl.load(about + 5), tl.load(about + 6), tl.load(about + 7)
    out_width, out_height = tl.load(about + 8), tl.load(about + 9)

    c = tl.arange(0, BC)
    inside = c < columns
    x = (column + c) // 3
    begin = tl.load(tables + across_starts + x, mask=inside, other=0)
    within = begin * step + (column + c) % 3
    across = tables + across_weights + x

    y = tl.arange(0, BY)
    wanted = y < lines
    first = tl.load(tables + down_starts + line + y, mask=wanted, other=0)
    top = tl.load(tables + down_starts + line)
    bottom = tl.load(tables + down_starts + line + lines - 1) + down_taps
    down = tables + down_weights + line + y

    total = tl.full([BY, BC], HALF, tl.int32)
    for row in range(top, bottom, BR):
        rows = row + tl.arange(0, BR)
        pointers = source + (rows.to(tl.int64) * stride)[:, None] + within[None, :]
        live = (rows < bottom)[:, None] & inside[None, :]
        sums = tl.full([BR, BC], HALF, tl.int32)
        for tap in range(across_taps):
            weight = tl.load(across + tap * out_width, mask=inside, other=0)
            pixel = tl.load(pointers + tap * step, mask=live, other=0)
            sums += pixel.to(tl.int32) * weight[None, :]
        pixels = tl.minimum(tl.maximum(sums >> SHIFT, 0), 255).to(tl.float32).to(tl.float16)
        t = rows[None, :] - first[:, None]
        used = (t >= 0) & (t < down_taps) & wanted[:, None]
        weights = tl.load(down[:, None] + t * out_height, mask=used, other=0)
        high = (weights + 2048) >> 12
        low = weights - (high << 12)
        total += tl.dot(high.to(tl.float32).to(tl.float16), pixels).to(tl.int32) << 12
        total += tl.dot(low.to(tl.float32).to(tl.float16), pixels).to(tl.int32)
    return tl.minimum(tl.maximum(total >> SHIFT, 0), 255)


@triton.jit
def normalised(value, channel, mean0, mean1, mean2, std0, std1, std2):
    """(value / 255 - mean) / std of each channel, rounded correctly after each step, as torch does it."""
    mean = tl.where(channel == 0, mean0, tl.where(channel == 1, mean1, mean2))
    std = tl.where(channel == 0, std0, tl.where(channel == 1, std1, std2))
    unit = tl.div_rn(value.to(tl.float32), tl.full(value.shape, 255.0, tl.float32))
    return tl.div_rn(unit - mean, std)


@triton.jit
def blur_patchify_forward(
    addresses,
    images,
    tables,
    programs,
    out,
    mean0,
    mean1,
    mean2,
    std0,
    std1,
    std2,
    PATCH: tl.constexpr,
    LINES: tl.constexpr,
    ALIGN: tl.constexpr,
    BY: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
    BO: tl.constexpr,
):
    job = programs + tl.program_id(0) * 4
    image, line, patch, patches = tl.load(job), tl.load(job + 1), tl.load(job + 2), tl.load(job + 3)
    ROW: tl.constexpr = PATCH * 3
    PART: tl.constexpr = LINES * ROW  # what this program writes of one patch
    inner = line % PATCH
    lines = tl.minimum(PATCH - inner, LINES)
    tile = filtered_tile(addresses, images, tables, image, line, lines, patch * ROW, patches * ROW, BY, BC, BR)
    # The tile is in the order of the picture. It is stored in the order of the patches, where threads write
    # neighbouring numbers and stores are wide.
    e = tl.arange(0, BO)
    part, rest = e // PART, e % PART
    place = tl.minimum((rest // ROW) * BC + part * ROW + rest % ROW, BY * BC - 1)
    value = tl.gather(tl.reshape(tile.to(tl.uint8), [BY * BC]), place, 0)
    result = normalised(value, e % 3, mean0, mean1, mean2, std0, std1, std2)
    about = images + image * FIELDS
    turned, across = tl.load(about), tl.load(about + 10)
    if turned:  # lines are columns of the picture, and patches that lie below each other are not neighbours in memory
        token = tl.load(about + 1) + patch * across + line // PATCH
        beside = (rest % ROW) // 3 * ROW + (inner + rest // ROW) * 3 + e % 3
        offsets = (token + part * across).to(tl.int64) * (PATCH * ROW) + beside
        keep = (e < patches * PART) & (rest < lines * ROW)
        tl.store(out + offsets, result.to(out.dtype.element_ty), mask=keep)
    else:
        token = tl.load(about + 1) + (line // PATCH) * across + patch
        if LINES == PATCH:
            begin = tl.multiple_of(token.to(tl.int64) * (PATCH * ROW), ALIGN)
            limit = tl.multiple_of(patches * PART, ALIGN)
            tl.store(out + begin + e, result.to(out.dtype.element_ty), mask=e < limit)
        else:
            offsets = (token + part).to(tl.int64) * (PATCH * ROW) + inner * ROW + rest
            keep = (e < patches * PART) & (rest < lines * ROW)
            tl.store(out + offsets, result.to(out.dtype.element_ty), mask=keep)


def launch_blur_patchify(images: Sequence[Tensor], preparation: Preparation, dtype: torch.dtype) -> Tensor:
    """Patches [N, F] in `dtype` of uint8 pictures [H, W, 3], as `blur_patchify` defines them."""
    images = [packed(x) for x in images]
    patch_size, features = preparation.patch_size, preparation.features()
    lines = math.ceil(patch_size / math.ceil(patch_size / ROWS))
    todo = plan(images, preparation, lines)
    out = torch.empty((preparation.patches(), features), dtype=dtype, device=images[0].device)
    blur_patchify_forward[(len(todo.programs),)](
        addresses(images, preparation.sizes()),
        todo.images,
        todo.tables,
        todo.programs,
        out,
        *preparation.mean,
        *preparation.std,
        PATCH=patch_size,
        LINES=lines,
        ALIGN=math.gcd(todo.even * features, 16 // out.element_size()),
        BY=ROWS,
        BC=todo.columns,
        BR=ROWS,
        BO=triton.next_power_of_2(todo.group * lines * patch_size * 3),
        num_warps=WARPS,
        **LAUNCH,
    )
    return out
