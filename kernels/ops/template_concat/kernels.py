"""Triton kernels of `template_concat`, and the functions that launch them.

A program of the forward pass takes the same rows of one picture after another. So a position row that several pictures
have at the same place is read once, and the timestep row of a picture is read once per block of rows.
"""

import torch
from torch import Tensor

from ..common.optional_triton import LAUNCH, tl, triton
from .sources import Places, Sources, Wanted


@triton.jit
def template_concat_forward(
    packed,
    token_ids,
    embedding,
    token_rows,
    visual,
    visual_rows,
    visual_position_ids,
    visual_position_embedding,
    latents,
    latent_rows,
    latent_position_ids,
    latent_position_embedding,
    timestep_embedding,
    latent_cu_seqlens,
    num_tokens,
    num_visual,
    num_latents,
    pictures,
    token_blocks,
    visual_blocks,
    latent_blocks,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PICTURES: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    VISUAL_POSITIONS: tl.constexpr,
    LATENT_POSITIONS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    TIMES: tl.constexpr,
):
    dtype = packed.dtype.element_ty
    block = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    within = column < DIM
    if DIM % COLUMNS == 0:
        within = tl.full((1, COLUMNS), 1, tl.int1)
    lane = tl.arange(0, ROWS)[:, None]
    if block < token_blocks:
        index = block * ROWS + lane
        live = index < num_tokens
        source = tl.load(token_ids + index, mask=live, other=0).to(tl.int64)
        row = index.to(tl.int64)
        if HAS_ROWS:
            row = tl.load(token_rows + index, mask=live, other=0).to(tl.int64)
        x = tl.load(embedding + source * DIM + column, mask=live & within, other=0.0)
        tl.store(packed + row * DIM + column, x.to(tl.float32).to(dtype), mask=live & within)
    elif block < token_blocks + visual_blocks:
        index = (block - token_blocks) * ROWS + lane
        live = index < num_visual
        row = (num_tokens + index).to(tl.int64)
        if HAS_ROWS:
            row = tl.load(visual_rows + index, mask=live, other=0).to(tl.int64)
        x = tl.load(visual + index.to(tl.int64) * DIM + column, mask=live & within, other=0.0).to(tl.float32)
        if VISUAL_POSITIONS:
            place = tl.load(visual_position_ids + index, mask=live, other=0).to(tl.int64)
            row_of = visual_position_embedding + place * DIM + column
            x += tl.load(row_of, mask=live & within, other=0.0).to(tl.float32)
        tl.store(packed + row * DIM + column, x.to(dtype), mask=live & within)
    else:
        longest = num_latents
        if SEGMENTS:
            number = tl.arange(0, PICTURES)
            begins = tl.load(latent_cu_seqlens + number, mask=number < pictures, other=0)
            ends = tl.load(latent_cu_seqlens + number + 1, mask=number < pictures, other=0)
            longest = tl.max(ends - begins, axis=0).to(tl.int32)
        for first in range((block - token_blocks - visual_blocks) * ROWS, longest, latent_blocks * ROWS):
            place = tl.full((ROWS, 1), -1, tl.int32)
            if LATENT_POSITIONS:
                position = tl.zeros((ROWS, COLUMNS), latent_position_embedding.dtype.element_ty)
            for picture in range(0, pictures):
                begin = 0
                end = num_latents
                if SEGMENTS:
                    begin = tl.load(latent_cu_seqlens + picture).to(tl.int32)
                    end = tl.load(latent_cu_seqlens + picture + 1).to(tl.int32)
                index = begin + first + lane
                live = index < end
                x = tl.load(latents + index.to(tl.int64) * DIM + column, mask=live & within, other=0.0).to(tl.float32)
                if TIMES:
                    time = timestep_embedding + picture * DIM + column
                    # One row reads, the sum hands it to all; a load of [1, COLUMNS] would lie in other threads than x.
                    mine = tl.load(time + lane * 0, mask=live & (lane == 0) & within, other=0.0)
                    x += tl.sum(mine.to(tl.float32), axis=0)[None, :]
                if LATENT_POSITIONS:
                    # The same place in the next picture is usually the same position: keep its row.
                    new = tl.load(latent_position_ids + index, mask=live, other=-1).to(tl.int32)
                    fresh = live & (new != place)
                    row_of = latent_position_embedding + new.to(tl.int64) * DIM + column
                    position = tl.load(row_of, mask=fresh & within, other=position)
                    place = tl.where(fresh, new, place)
                    x += position.to(tl.float32)
                row = (num_tokens + num_visual + index).to(tl.int64)
                if HAS_ROWS:
                    row = tl.load(latent_rows + index, mask=live, other=0).to(tl.int64)
                tl.store(packed + row * DIM + column, x.to(dtype), mask=live & within)


@triton.jit
def template_concat_backward(
    grad,
    d_visual,
    d_latents,
    d_time,
    visual_rows,
    latent_rows,
    latent_cu_seqlens,
    num_latents,
    num_visual,
    visual_start,
    latent_start,
    pictures,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    LATENTS: tl.constexpr,
    TIMES: tl.constexpr,
):
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    within = column < DIM
    if DIM % COLUMNS == 0:
        within = tl.full((1, COLUMNS), 1, tl.int1)
    lane = tl.arange(0, ROWS)[:, None]
    block = tl.program_id(0)
    if block < pictures:
        begin = 0
        end = num_latents
        if SEGMENTS:
            begin = tl.load(latent_cu_seqlens + block).to(tl.int32)
            end = tl.load(latent_cu_seqlens + block + 1).to(tl.int32)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(begin, end, ROWS):
            index = first + lane
            live = index < end
            row = (latent_start + index).to(tl.int64)
            if HAS_ROWS:
                row = tl.load(latent_rows + index, mask=live, other=0).to(tl.int64)
            g = tl.load(grad + row * DIM + column, mask=live & within, other=0.0).to(tl.float32)
            if LATENTS:
                target = d_latents + index.to(tl.int64) * DIM + column
                tl.store(target, g.to(d_latents.dtype.element_ty), mask=live & within)
            if TIMES:
                total += g
        if TIMES:
            place = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
            summed = tl.sum(total, axis=0).to(d_time.dtype.element_ty)
            tl.store(d_time + block.to(tl.int64) * DIM + place, summed, mask=place < DIM)
    else:
        index = (block - pictures) * ROWS + lane
        live = index < num_visual
        row = (visual_start + index).to(tl.int64)
        if HAS_ROWS:
            row = tl.load(visual_rows + index, mask=live, other=0).to(tl.int64)
        g = tl.load(grad + row * DIM + column, mask=live & within, other=0.0)
        target = d_visual + index.to(tl.int64) * DIM + column
        tl.store(target, g.to(tl.float32).to(d_visual.dtype.element_ty), mask=live & within)


COLUMNS = 512
"""The most columns of a tile going forward."""
BACKWARD_COLUMNS = 64
"""Going backward: one cache line of bf16. The sums over a picture's rows are in order, so programs can only share out
pictures and columns, and narrow tiles give more of them."""
NUMBERS = 2048
"""Of a tile."""
WARPS = 8


def _tile(dim: int, most: int) -> tuple[int, int]:
    """Columns and rows of a tile. Columns that divide `dim` need no masks."""
    columns = next((c for c in (512, 256, 128, 64) if c <= most and dim % c == 0), 0)
    columns = columns or min(most, triton.next_power_of_2(dim))
    return columns, NUMBERS // columns


def launch_forward(sources: Sources, length: int, dtype: torch.dtype) -> Tensor:
    """The packed rows [length, D] in `dtype`."""
    first = sources.first()
    dim = first.shape[1]
    packed = torch.empty(length, dim, dtype=dtype, device=first.device)
    if not length:
        return packed
    columns, rows = _tile(dim, COLUMNS)
    counts, ends, table = sources.counts(), sources.latent_cu_seqlens, sources.latent_position_embedding
    pictures = 1 if ends is None else len(ends) - 1
    blocks = [triton.cdiv(n, rows) for n in counts]
    blocks[2] = triton.cdiv(triton.cdiv(counts[2], max(1, pictures)), rows)  # of a picture of average size
    # Rows vary fastest: all pictures pass one slab of columns while its part of the tables stays in the cache.
    template_concat_forward[(sum(blocks), triton.cdiv(dim, columns))](
        packed,
        *(packed if x is None else x.contiguous() for x in sources),  # what is absent is never read
        *(*counts, pictures, *blocks),
        DIM=dim,
        ROWS=rows,
        COLUMNS=columns,
        PICTURES=triton.next_power_of_2(max(1, pictures)),
        HAS_ROWS=any(x is not None for x in sources.rows().values()),
        VISUAL_POSITIONS=sources.visual_position_embedding is not None,
        LATENT_POSITIONS=table is not None,
        SEGMENTS=ends is not None,
        TIMES=sources.timestep_embedding is not None,
        num_warps=WARPS,
        # With room for more registers, ptxas takes more and gains nothing; tables of 32 bits do need more.
        maxnreg=None if table is not None and table.element_size() > 2 else 40,
        **LAUNCH,
    )
    return packed


def launch_backward(grad: Tensor, places: Places, wanted: Wanted) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of visual, latents and timestep_embedding for that of the packed rows; of no rows where not wanted."""
    grad = grad.contiguous()
    dim, starts, pictures = grad.shape[1], places.starts, places.pictures()
    num_visual, num_latents = starts[1] - starts[0], starts[2] - starts[1]
    d_visual, d_latents, d_time = (
        grad.new_empty(0 if dtype is None else rows, dim, dtype=dtype or grad.dtype)
        for rows, dtype in zip((num_visual, num_latents, pictures), wanted, strict=True)
    )
    columns, rows = _tile(dim, BACKWARD_COLUMNS)
    pictures = pictures if wanted.timesteps or (wanted.latents and num_latents) else 0
    blocks = pictures + (triton.cdiv(num_visual, rows) if wanted.visual else 0)
    if blocks:
        template_concat_backward[(blocks, triton.cdiv(dim, columns))](
            *(grad, d_visual, d_latents, d_time),
            *(grad if x is None else x.contiguous() for x in places[:3]),  # what is absent is never read
            *(num_latents, num_visual, starts[0], starts[1], pictures),
            DIM=dim,
            ROWS=rows,
            COLUMNS=columns,
            HAS_ROWS=places.visual_rows is not None or places.latent_rows is not None,
            SEGMENTS=places.latent_cu_seqlens is not None,
            LATENTS=wanted.latents is not None,
            TIMES=wanted.timesteps is not None,
            num_warps=WARPS,
            **LAUNCH,
        )
    return d_visual, d_latents, d_time
