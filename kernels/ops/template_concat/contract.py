"""The packed sequence of embeddings in one launch: text looked up, pictures and latents placed, positions, times added.

Symbols: S packed rows of D numbers. Three sources, each optional:

    text     row token_rows[i]  <- embedding[token_ids[i]]
    visual   row visual_rows[i] <- visual[i]  + visual_position_embedding[visual_position_ids[i]]
    latents  row latent_rows[i] <- latents[i] + timestep_embedding[picture of i] + latent_position_embedding[...]

All sums in fp32 (fp64 for fp64), one rounding at the store. Saved for the backward pass: the indices alone. It is one
launch that gathers rows of the upstream gradient for `visual` and `latents`, as far as they need one, and adds up the
tokens of every picture, in order, for `timestep_embedding`; gradients of looked-up tables are torch's.

Why ours exists: the eager sequence materialises every term for every row (12 + 19 kernels, 8 times the bytes), and no
such kernel is in Liger or torch. The kernels are in `template_concat_kernels`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..common.arguments import FLOATING, expect, expect_floating, expect_tensors
from ..common.implementation import implementation
from ..common.torch_op import torch_op
from .kernels import Maybe, launch_backward, launch_forward


def _add_rows(x: Tensor, table: Maybe, ids: Maybe) -> Tensor:
    return x if table is None or ids is None else x + table.index_select(0, ids).to(x.dtype)


def _pictures(latent_cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Picture of each latent token, int64 [G]."""
    lengths = latent_cu_seqlens.diff()
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths, output_size=tokens)


def _rows_of(grad: Tensor, rows: Maybe, start: int, end: int) -> Tensor:
    """Rows of the packed gradient that belong to one source."""
    return grad[start:end] if rows is None else grad.index_select(0, rows)


def reference(
    token_ids: Maybe,
    embedding: Maybe,
    token_rows: Maybe,
    visual: Maybe,
    visual_rows: Maybe,
    visual_position_ids: Maybe,
    visual_position_embedding: Maybe,
    latents: Maybe,
    latent_rows: Maybe,
    latent_position_ids: Maybe,
    latent_position_embedding: Maybe,
    timestep_embedding: Maybe,
    latent_cu_seqlens: Maybe,
    length: int,
    dtype: torch.dtype,
) -> Tensor:
    """Plain torch, any device and dtype."""
    wide = torch.promote_types(dtype, torch.float32)
    parts: list[tuple[Maybe, Tensor]] = []
    if token_ids is not None and embedding is not None:
        parts.append((token_rows, embedding.index_select(0, token_ids)))
    if visual is not None:
        parts.append((visual_rows, _add_rows(visual.to(wide), visual_position_embedding, visual_position_ids)))
    if latents is not None:
        x = latents.to(wide)
        if timestep_embedding is not None and latent_cu_seqlens is not None:
            x = _add_rows(x, timestep_embedding, _pictures(latent_cu_seqlens, len(x)))
        parts.append((latent_rows, _add_rows(x, latent_position_embedding, latent_position_ids)))
    if all(rows is None for rows, _ in parts):
        return torch.cat([x.to(dtype) for _, x in parts])
    packed = parts[0][1].new_empty(length, parts[0][1].shape[1], dtype=dtype)
    for rows, x in parts:
        packed[rows] = x.to(dtype)
    return packed


def reference_backward(
    grad: Tensor,
    visual_rows: Maybe,
    latent_rows: Maybe,
    latent_cu_seqlens: Maybe,
    starts: Sequence[int],
    needs: Sequence[bool],
    visual_dtype: torch.dtype,
    latents_dtype: torch.dtype,
    timestep_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of visual, latents and timestep_embedding; of no rows where not needed.

    `starts`: where visual rows, latent rows and the end lie when no rows are given.
    """
    nothing = grad.new_empty(0, grad.shape[1])
    d_visual = _rows_of(grad, visual_rows, starts[0], starts[1]) if needs[0] else nothing
    d_latents = _rows_of(grad, latent_rows, starts[1], starts[2]) if needs[1] or needs[2] else nothing
    d_time = nothing
    if needs[2] and latent_cu_seqlens is not None:
        wide = d_latents.to(torch.promote_types(grad.dtype, torch.float32))
        d_time = wide.new_zeros(len(latent_cu_seqlens) - 1, grad.shape[1])
        d_time = d_time.index_add(0, _pictures(latent_cu_seqlens, len(wide)), wide)
    return (
        d_visual.to(visual_dtype, copy=True),
        (d_latents if needs[1] else nothing).to(latents_dtype, copy=True),
        d_time.to(timestep_dtype, copy=True),
    )


def _check_on_host(
    token_ids: Maybe,
    embedding: Maybe,
    visual_position_ids: Maybe,
    visual_position_embedding: Maybe,
    latent_position_ids: Maybe,
    latent_position_embedding: Maybe,
    rows: dict[str, Maybe],
    latents: Maybe,
    latent_cu_seqlens: Maybe,
    length: int,
) -> None:
    """What costs a synchronisation on a GPU and nothing on the CPU: every index inside its range."""
    looked_up = {
        "token_ids": (token_ids, embedding),
        "visual_position_ids": (visual_position_ids, visual_position_embedding),
        "latent_position_ids": (latent_position_ids, latent_position_embedding),
    }
    indices = {name: (ids, len(table)) for name, (ids, table) in looked_up.items() if table is not None}
    indices |= {name: (x, length) for name, x in rows.items()}
    for name, (given, size) in indices.items():
        if given is not None and len(given):
            low, high = given.numpy().min(), given.numpy().max()
            if low < 0 or high >= size:
                raise ValueError(f"{name}: expected numbers in [0, {size}), got {low} to {high}")
    taken = np.zeros(length, dtype=np.int64)
    for name, given in rows.items():
        if given is not None:
            taken += np.bincount(given.numpy(), minlength=length)
            if (taken > 1).any():
                raise ValueError(f"{name}: expected every packed row once, but row {taken.argmax()} occurs twice")
    if latent_cu_seqlens is not None and latents is not None:
        ends = latent_cu_seqlens.numpy()
        if ends[0] != 0 or ends[-1] != len(latents) or (np.diff(ends) < 0).any():
            raise ValueError(f"latent_cu_seqlens: expected 0 rising to {len(latents)}, got {ends}")


@torch_op("template_concat")
def _op(
    token_ids: Tensor | None,
    embedding: Tensor | None,
    token_rows: Tensor | None,
    visual: Tensor | None,
    visual_rows: Tensor | None,
    visual_position_ids: Tensor | None,
    visual_position_embedding: Tensor | None,
    latents: Tensor | None,
    latent_rows: Tensor | None,
    latent_position_ids: Tensor | None,
    latent_position_embedding: Tensor | None,
    timestep_embedding: Tensor | None,
    latent_cu_seqlens: Tensor | None,
    length: int,
    dtype: torch.dtype,
) -> Tensor:
    first = next(x for x in (embedding, visual, latents) if x is not None)
    if first.device.type == "cpu":
        _check_on_host(
            *(token_ids, embedding, visual_position_ids, visual_position_embedding),
            *(latent_position_ids, latent_position_embedding),
            rows={"token_rows": token_rows, "visual_rows": visual_rows, "latent_rows": latent_rows},
            latents=latents,
            latent_cu_seqlens=latent_cu_seqlens,
            length=length,
        )
    summed = [x for x in (first, visual, latents, timestep_embedding) if x is not None]
    run = launch_forward if implementation(*summed, first.new_empty(0, dtype=dtype)) == "triton" else reference
    return run(
        *(token_ids, embedding, token_rows, visual, visual_rows, visual_position_ids, visual_position_embedding),
        *(latents, latent_rows, latent_position_ids, latent_position_embedding, timestep_embedding, latent_cu_seqlens),
        *(length, dtype),
    )


@_op.register_fake
def _(token_ids, embedding, token_rows, visual, *rest):
    latents, length, dtype = rest[3], rest[-2], rest[-1]
    first = next(x for x in (embedding, visual, latents) if x is not None)
    return first.new_empty(length, first.shape[1], dtype=dtype)


@torch_op("template_concat_backward")
def _backward_op(
    grad: Tensor,
    visual_rows: Tensor | None,
    latent_rows: Tensor | None,
    latent_cu_seqlens: Tensor | None,
    starts: Sequence[int],
    needs: Sequence[bool],
    visual_dtype: torch.dtype,
    latents_dtype: torch.dtype,
    timestep_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    run = launch_backward if implementation(grad) == "triton" else reference_backward
    dtypes = (visual_dtype, latents_dtype, timestep_dtype)
    return run(grad, visual_rows, latent_rows, latent_cu_seqlens, starts, needs, *dtypes)


@_backward_op.register_fake
def _(grad, visual_rows, latent_rows, latent_cu_seqlens, starts, needs, *dtypes):
    pictures = 1 if latent_cu_seqlens is None else latent_cu_seqlens.shape[0] - 1
    sizes = (starts[1] - starts[0], starts[2] - starts[1], pictures)
    return tuple(
        grad.new_empty(size if need else 0, grad.shape[1], dtype=dtype)
        for size, need, dtype in zip(sizes, needs, dtypes, strict=True)
    )


_EMBEDDING, _VISUAL, _VISUAL_TABLE, _LATENTS, _LATENT_TABLE, _TIMES = 1, 3, 6, 7, 10, 11


def _save(ctx, inputs, output) -> None:
    token_ids, visual, latents = inputs[0], inputs[_VISUAL], inputs[_LATENTS]
    counts = [0 if x is None else x.shape[0] for x in (token_ids, visual, latents)]
    ctx.starts = [counts[0], counts[0] + counts[1], sum(counts)]
    ctx.dtypes = [torch.float32 if x is None else x.dtype for x in (visual, latents, inputs[_TIMES])]
    ctx.tables = [None if x is None else (x.shape[0], x.dtype) for x in (inputs[n] for n in (1, 6, 10))]
    ctx.save_for_backward(*(inputs[n] for n in (0, 2, 4, 5, 8, 9, 12)))


def _differentiate(ctx, grad):
    token_ids, token_rows, visual_rows, visual_ids, latent_rows, latent_ids, latent_cu_seqlens = ctx.saved_tensors
    need, starts = ctx.needs_input_grad, ctx.starts
    grads = [None] * 15
    needs = [need[_VISUAL], need[_LATENTS], need[_TIMES]]
    if needs[1] and latent_rows is None and starts[1] == 0 and grad.dtype == ctx.dtypes[1]:
        grads[_LATENTS], needs[1] = grad, False  # latents alone: their gradient is the whole of it
    if any(needs):
        rows = visual_rows, latent_rows, latent_cu_seqlens
        for place, x, wanted in zip(
            (_VISUAL, _LATENTS, _TIMES), _backward_op(grad, *rows, starts, needs, *ctx.dtypes), needs, strict=True
        ):
            if wanted:
                grads[place] = x
    tables = (
        (_EMBEDDING, token_ids, token_rows, 0, starts[0]),
        (_VISUAL_TABLE, visual_ids, visual_rows, starts[0], starts[1]),
        (_LATENT_TABLE, latent_ids, latent_rows, starts[1], starts[2]),
    )
    for (place, ids, rows, start, end), table in zip(tables, ctx.tables, strict=True):
        if need[place]:
            size, dtype = table
            above = _rows_of(grad, rows, start, end).to(dtype)
            grads[place] = torch.ops.aten.embedding_dense_backward(above, ids, size, -1, False)
    return tuple(grads)


_op.register_autograd(_differentiate, setup_context=_save)


def template_concat(
    *,
    token_ids: Maybe = None,
    embedding: Maybe = None,
    token_rows: Maybe = None,
    visual: Maybe = None,
    visual_rows: Maybe = None,
    visual_position_ids: Maybe = None,
    visual_position_embedding: Maybe = None,
    latents: Maybe = None,
    latent_rows: Maybe = None,
    latent_position_ids: Maybe = None,
    latent_position_embedding: Maybe = None,
    timestep_embedding: Maybe = None,
    latent_cu_seqlens: Maybe = None,
    length: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Put text, visual and latent embeddings in their rows of the packed sequence, positions and times added.

    Nt text rows, Nv visual rows, G latent rows of M pictures; S = Nt + Nv + G. Indices are int64 or int32.

    Args:
        token_ids: [Nt] in [0, V); embedding: [V, D]. Both or neither.
        visual: [Nv, D], or None.
        visual_position_ids: [Nv] in [0, P); visual_position_embedding: [P, D]. Both or neither.
        latents: [G, D], or None; the tokens of a picture lie together.
        latent_position_ids: [G] in [0, Q); latent_position_embedding: [Q, D]. Both or neither.
        timestep_embedding: [M, D], one row per picture, or None; needs latent_cu_seqlens.
        latent_cu_seqlens: [M + 1], first latent token of each picture, then G.
        token_rows: [Nt], visual_rows: [Nv], latent_rows: [G]: packed row of each source row, together a permutation of
            0 .. S - 1. Given for all sources that are there, or for none: then text, visual, latents follow each other.
        length: S, to be checked against the sources; None takes their sum.
        dtype: of the result; None takes that of latents, else visual, else embedding.

    Returns:
        [S, D]. Gradients reach every floating argument that requires one.

    Raises:
        ValueError: shapes, dtypes or lengths that do not fit together; the message starts with the argument's name. On
            the CPU also an index outside its range, a packed row that occurs twice, latent_cu_seqlens that do not rise
            from 0 to G. On a GPU those would cost a synchronisation and are the caller's duty.
    """
    expect((token_ids is None) == (embedding is None), "embedding", "it together with token_ids", "only one")
    sources = {"embedding": embedding, "visual": visual, "latents": latents}
    given = {name: x for name, x in sources.items() if x is not None}
    expect(len(given) > 0, "token_ids", "at least one of token_ids, visual and latents", "none")
    expect_tensors(**given)
    first = next(iter(given.values()))
    dim = first.shape[-1] if first.dim() else 0
    tables = {
        "visual_position_embedding": visual_position_embedding,
        "latent_position_embedding": latent_position_embedding,
        "timestep_embedding": timestep_embedding,
    }
    given |= {name: x for name, x in tables.items() if x is not None}
    expect_tensors(**given)
    for name, x in given.items():
        expect(x.dim() == 2 and x.shape[-1] == dim, name, ["rows", dim], x.shape)
    expect_floating(first.device, **given)
    counts = [0 if x is None else x.shape[0] for x in (token_ids, visual, latents)]
    positions = (
        ("visual", visual, visual_position_ids, visual_position_embedding),
        ("latent", latents, latent_position_ids, latent_position_embedding),
    )
    for name, source, ids, table in positions:
        expect((ids is None) == (table is None), f"{name}_position_ids", f"it with {name}_position_embedding", "one")
        expect(ids is None or source is not None, f"{name}_position_ids", "none without a source", "some")
    indices = {
        "token_ids": (token_ids, counts[0]),
        "visual_position_ids": (visual_position_ids, counts[1]),
        "latent_position_ids": (latent_position_ids, counts[2]),
        "token_rows": (token_rows, counts[0]),
        "visual_rows": (visual_rows, counts[1]),
        "latent_rows": (latent_rows, counts[2]),
    }
    for name, (index, count) in indices.items():
        if index is not None:
            expect_tensors(**{name: index})
            expect(index.dim() == 1 and index.shape[0] == count, name, [count], index.shape)
            expect(index.dtype in (torch.int64, torch.int32), name, "int64 or int32", index.dtype)
            expect(index.device == first.device, name, f"a tensor on {first.device}", index.device)
    rows = {"token_rows": token_rows, "visual_rows": visual_rows, "latent_rows": latent_rows}
    if any(index is not None for index in rows.values()):
        for (name, index), source in zip(rows.items(), sources.values(), strict=True):
            expect((index is None) == (source is None), name, "rows for every source or for none", "a mixture")
    if timestep_embedding is not None:
        expect(latents is not None, "timestep_embedding", "none without latents", "some")
        expect(latent_cu_seqlens is not None, "latent_cu_seqlens", "it together with timestep_embedding", "None")
    if latent_cu_seqlens is not None:
        expect_tensors(latent_cu_seqlens=latent_cu_seqlens)
        ends = latent_cu_seqlens
        wanted = "[M + 1]" if timestep_embedding is None else [timestep_embedding.shape[0] + 1]
        fits = ends.dim() == 1 and ends.shape[0] >= 1
        fits = fits and (timestep_embedding is None or ends.shape[0] == timestep_embedding.shape[0] + 1)
        expect(fits and latents is not None, "latent_cu_seqlens", wanted, ends.shape)
        expect(ends.dtype in (torch.int64, torch.int32), "latent_cu_seqlens", "int64 or int32", ends.dtype)
        expect(ends.device == first.device, "latent_cu_seqlens", f"a tensor on {first.device}", ends.device)
        expect(
            ends.shape[0] > 1 or counts[2] == 0, "latent_cu_seqlens", "0 rising to the rows of latents", "no pictures"
        )
    total = sum(counts)
    if length is not None and length != total:
        raise ValueError(f"length: expected {total}, the rows of all sources, got {length}")
    if dtype is None:
        dtype = next(x for x in (latents, visual, embedding) if x is not None).dtype
    expect(dtype in FLOATING, "dtype", "torch.bfloat16, float16, float32 or float64", dtype)
    return _op(
        *(token_ids, embedding, token_rows, visual, visual_rows, visual_position_ids, visual_position_embedding),
        *(latents, latent_rows, latent_position_ids, latent_position_embedding, timestep_embedding, latent_cu_seqlens),
        *(total, dtype),
    )
