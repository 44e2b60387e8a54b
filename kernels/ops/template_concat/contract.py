"""The packed sequence of embeddings in one launch: text is looked up, pictures and latents are placed, positions and
times are added.

Symbols: S packed rows of D numbers. There are three sources, each optional:

    text     row token_rows[i]  <- embedding[token_ids[i]]
    visual   row visual_rows[i] <- visual[i]  + visual_position_embedding[visual_position_ids[i]]
    latents  row latent_rows[i] <- latents[i] + timestep_embedding[picture of i] + latent_position_embedding[...]

All sums are fp32 (fp64 for fp64) and rounded once, when they are stored. Kept for the backward pass: the indices alone.
The backward pass is one launch. It gathers rows of the incoming gradient for `visual` and `latents`, as far as they
need one, and sums the rows of every picture, in order, for `timestep_embedding`. Gradients of tables that are looked up
are computed by torch.

Why ours: eager torch writes every term of every row to memory (12 + 19 kernels, 8 times the bytes), and neither Liger
nor torch has such a kernel.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.arguments import FLOATING, expect, expect_floating, expect_tensors
from ..common.implementation import implementation
from ..common.torch_op import torch_op
from .kernels import launch_backward, launch_forward
from .sources import Maybe, Places, Sources, Wanted


def _add_rows(x: Tensor, table: Maybe, ids: Maybe) -> Tensor:
    return x if table is None or ids is None else x + table.index_select(0, ids).to(x.dtype)


def _pictures(latent_cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Picture of each latent token, int64 [G]."""
    lengths = latent_cu_seqlens.diff()
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths, output_size=tokens)


def _rows_of(grad: Tensor, rows: Maybe, start: int, end: int) -> Tensor:
    """Rows of the packed gradient that belong to one source."""
    return grad[start:end] if rows is None else grad.index_select(0, rows)


def reference(sources: Sources, length: int, dtype: torch.dtype) -> Tensor:
    """The packed rows [length, D] in `dtype`, in plain torch."""
    wide = torch.promote_types(dtype, torch.float32)
    parts: list[tuple[Maybe, Tensor]] = []
    if sources.token_ids is not None and sources.embedding is not None:
        parts.append((sources.token_rows, sources.embedding.index_select(0, sources.token_ids)))
    if sources.visual is not None:
        visual = _add_rows(sources.visual.to(wide), sources.visual_position_embedding, sources.visual_position_ids)
        parts.append((sources.visual_rows, visual))
    if sources.latents is not None:
        x = sources.latents.to(wide)
        if sources.timestep_embedding is not None and sources.latent_cu_seqlens is not None:
            x = _add_rows(x, sources.timestep_embedding, _pictures(sources.latent_cu_seqlens, len(x)))
        x = _add_rows(x, sources.latent_position_embedding, sources.latent_position_ids)
        parts.append((sources.latent_rows, x))
    if all(rows is None for rows, _ in parts):
        return torch.cat([x.to(dtype) for _, x in parts])
    packed = parts[0][1].new_empty(length, parts[0][1].shape[1], dtype=dtype)
    for rows, x in parts:
        packed[rows] = x.to(dtype)
    return packed


def reference_backward(grad: Tensor, places: Places, wanted: Wanted) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of visual, latents and timestep_embedding for that of the packed rows; of no rows where not wanted."""
    starts = places.starts
    d_visual, d_latents, d_time = (grad.new_empty(0, grad.shape[1]) for _ in range(3))
    if wanted.visual:
        d_visual = _rows_of(grad, places.visual_rows, starts[0], starts[1]).to(wanted.visual, copy=True)
    if wanted.latents or wanted.timesteps:
        of_latents = _rows_of(grad, places.latent_rows, starts[1], starts[2])
        if wanted.latents:
            d_latents = of_latents.to(wanted.latents, copy=True)
        if wanted.timesteps and places.latent_cu_seqlens is not None:
            wide = of_latents.to(torch.promote_types(grad.dtype, torch.float32))
            d_time = wide.new_zeros(places.pictures(), grad.shape[1])
            d_time = d_time.index_add(0, _pictures(places.latent_cu_seqlens, len(wide)), wide).to(wanted.timesteps)
    return d_visual, d_latents, d_time


def _check_on_host(sources: Sources, length: int) -> None:
    """That every index is inside its range: on a GPU this would wait for the device, on the CPU it costs nothing."""
    looked_up = {
        "token_ids": (sources.token_ids, sources.embedding),
        "visual_position_ids": (sources.visual_position_ids, sources.visual_position_embedding),
        "latent_position_ids": (sources.latent_position_ids, sources.latent_position_embedding),
    }
    indices = {name: (ids, len(table)) for name, (ids, table) in looked_up.items() if table is not None}
    indices |= {name: (x, length) for name, x in sources.rows().items()}
    for name, (given, size) in indices.items():
        if given is not None and len(given):
            low, high = given.numpy().min(), given.numpy().max()
            if low < 0 or high >= size:
                raise ValueError(f"{name}: expected numbers in [0, {size}), got {low} to {high}")
    taken = np.zeros(length, dtype=np.int64)
    for name, given in sources.rows().items():
        if given is not None:
            taken += np.bincount(given.numpy(), minlength=length)
            if (taken > 1).any():
                raise ValueError(f"{name}: expected every packed row once, but row {taken.argmax()} occurs twice")
    if sources.latent_cu_seqlens is not None and sources.latents is not None:
        ends = sources.latent_cu_seqlens.numpy()
        if ends[0] != 0 or ends[-1] != len(sources.latents) or (np.diff(ends) < 0).any():
            raise ValueError(f"latent_cu_seqlens: expected 0 rising to {len(sources.latents)}, got {ends}")


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
    sources = Sources(
        *(token_ids, embedding, token_rows, visual, visual_rows, visual_position_ids, visual_position_embedding),
        *(latents, latent_rows, latent_position_ids, latent_position_embedding, timestep_embedding, latent_cu_seqlens),
    )
    first = sources.first()
    if first.device.type == "cpu":
        _check_on_host(sources, length)
    summed = [x for x in (first, visual, latents, timestep_embedding) if x is not None]
    compute = launch_forward if implementation(*summed, first.new_empty(0, dtype=dtype)) == "triton" else reference
    return compute(sources, length, dtype)


@_op.register_fake
def _(*sources_length_dtype):
    *sources, length, dtype = sources_length_dtype
    first = Sources(*sources).first()
    return first.new_empty(length, first.shape[1], dtype=dtype)


@torch_op("template_concat_backward")
def _backward_op(
    grad: Tensor,
    visual_rows: Tensor | None,
    latent_rows: Tensor | None,
    latent_cu_seqlens: Tensor | None,
    starts: Sequence[int],
    visual_dtype: torch.dtype | None,
    latents_dtype: torch.dtype | None,
    timestep_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    compute = launch_backward if implementation(grad) == "triton" else reference_backward
    places = Places(visual_rows, latent_rows, latent_cu_seqlens, starts)
    return compute(grad, places, Wanted(visual_dtype, latents_dtype, timestep_dtype))


@_backward_op.register_fake
def _(grad, visual_rows, latent_rows, latent_cu_seqlens, starts, *dtypes):
    places = Places(visual_rows, latent_rows, latent_cu_seqlens, starts)
    sizes = (starts[1] - starts[0], starts[2] - starts[1], places.pictures())
    return tuple(
        grad.new_empty(0 if dtype is None else size, grad.shape[1], dtype=dtype or grad.dtype)
        for size, dtype in zip(sizes, dtypes, strict=True)
    )


def _save(ctx, inputs, output) -> None:
    sources = Sources(*inputs[: len(Sources._fields)])
    text, visual, latents = sources.counts()
    ctx.starts = [text, text + visual, text + visual + latents]
    ctx.dtypes = [None if x is None else x.dtype for x in (sources.visual, sources.latents, sources.timestep_embedding)]
    tables = (sources.embedding, sources.visual_position_embedding, sources.latent_position_embedding)
    ctx.tables = [None if x is None else (x.shape[0], x.dtype) for x in tables]
    ids = (sources.token_ids, sources.visual_position_ids, sources.latent_position_ids)
    ctx.save_for_backward(*ids, *sources.rows().values(), sources.latent_cu_seqlens)


def _differentiate(ctx, grad):
    *ids, token_rows, visual_rows, latent_rows, latent_cu_seqlens = ctx.saved_tensors
    need, starts = Sources(*ctx.needs_input_grad[: len(Sources._fields)]), ctx.starts
    grads: dict[str, Tensor] = {}
    summed: dict[str, Any] = {
        "visual": need.visual,
        "latents": need.latents,
        "timestep_embedding": need.timestep_embedding,
    }
    if need.latents and latent_rows is None and starts[1] == 0 and grad.dtype == ctx.dtypes[1]:
        grads["latents"], summed["latents"] = grad, False  # latents alone: their gradient is the whole of it
    if any(summed.values()):
        dtypes = [dtype if wanted else None for dtype, wanted in zip(ctx.dtypes, summed.values(), strict=True)]
        made = _backward_op(grad, visual_rows, latent_rows, latent_cu_seqlens, starts, *dtypes)
        grads |= {name: x for (name, wanted), x in zip(summed.items(), made, strict=True) if wanted}
    tables = {
        "embedding": (need.embedding, token_rows, 0, starts[0]),
        "visual_position_embedding": (need.visual_position_embedding, visual_rows, starts[0], starts[1]),
        "latent_position_embedding": (need.latent_position_embedding, latent_rows, starts[1], starts[2]),
    }
    for (name, (wanted, rows, start, end)), looked_up, table in zip(tables.items(), ids, ctx.tables, strict=True):
        if wanted:
            size, dtype = table
            above = _rows_of(grad, rows, start, end).to(dtype)
            grads[name] = torch.ops.aten.embedding_dense_backward(above, looked_up, size, -1, False)
    return *(grads.get(name) for name in Sources._fields), None, None


_op.register_autograd(_differentiate, setup_context=_save)


def _check(sources: Sources) -> None:
    """Shapes, dtypes and devices, and that what belongs together is there together."""
    text = (sources.token_ids is None) == (sources.embedding is None)
    expect(text, "embedding", "it together with token_ids", "only one")
    present = {"embedding": sources.embedding, "visual": sources.visual, "latents": sources.latents}
    given = {name: x for name, x in present.items() if x is not None}
    expect(len(given) > 0, "token_ids", "at least one of token_ids, visual and latents", "none")
    expect_tensors(**given)
    first = next(iter(given.values()))
    dim = first.shape[-1] if first.dim() else 0
    tables = {
        "visual_position_embedding": sources.visual_position_embedding,
        "latent_position_embedding": sources.latent_position_embedding,
        "timestep_embedding": sources.timestep_embedding,
    }
    given |= {name: x for name, x in tables.items() if x is not None}
    expect_tensors(**given)
    for name, x in given.items():
        expect(x.dim() == 2 and x.shape[-1] == dim, name, ["rows", dim], x.shape)
    expect_floating(first.device, **given)
    positions = (
        ("visual", sources.visual, sources.visual_position_ids, sources.visual_position_embedding),
        ("latent", sources.latents, sources.latent_position_ids, sources.latent_position_embedding),
    )
    for name, source, ids, table in positions:
        expect((ids is None) == (table is None), f"{name}_position_ids", f"it with {name}_position_embedding", "one")
        expect(ids is None or source is not None, f"{name}_position_ids", "none without a source", "some")
    _check_indices(sources, first.device)
    rows = sources.rows()
    if any(index is not None for index in rows.values()):
        for (name, index), source in zip(rows.items(), present.values(), strict=True):
            expect((index is None) == (source is None), name, "rows for every source or for none", "a mixture")
    _check_pictures(sources, first.device)


def _check_indices(sources: Sources, device: torch.device) -> None:
    text, visual, latents = sources.counts()
    indices = {
        "token_ids": (sources.token_ids, text),
        "visual_position_ids": (sources.visual_position_ids, visual),
        "latent_position_ids": (sources.latent_position_ids, latents),
        "token_rows": (sources.token_rows, text),
        "visual_rows": (sources.visual_rows, visual),
        "latent_rows": (sources.latent_rows, latents),
    }
    for name, (index, count) in indices.items():
        if index is not None:
            expect_tensors(**{name: index})
            expect(index.dim() == 1 and index.shape[0] == count, name, [count], index.shape)
            expect(index.dtype in (torch.int64, torch.int32), name, "int64 or int32", index.dtype)
            expect(index.device == device, name, f"a tensor on {device}", index.device)


def _check_pictures(sources: Sources, device: torch.device) -> None:
    ends, times, latents = sources.latent_cu_seqlens, sources.timestep_embedding, sources.latents
    if times is not None:
        expect(latents is not None, "timestep_embedding", "none without latents", "some")
        expect(ends is not None, "latent_cu_seqlens", "it together with timestep_embedding", "None")
    if ends is not None:
        expect_tensors(latent_cu_seqlens=ends)
        wanted = "[M + 1]" if times is None else [times.shape[0] + 1]
        fits = ends.dim() == 1 and ends.shape[0] >= 1
        fits = fits and (times is None or ends.shape[0] == times.shape[0] + 1)
        expect(fits and latents is not None, "latent_cu_seqlens", wanted, ends.shape)
        expect(ends.dtype in (torch.int64, torch.int32), "latent_cu_seqlens", "int64 or int32", ends.dtype)
        expect(ends.device == device, "latent_cu_seqlens", f"a tensor on {device}", ends.device)
        filled = ends.shape[0] > 1 or sources.counts()[2] == 0
        expect(filled, "latent_cu_seqlens", "0 rising to the rows of latents", "no pictures")


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
    """Put text, visual and latent embeddings in their rows of the packed sequence; add positions and times.

    There are Nt text rows, Nv visual rows and G latent rows of M pictures, S = Nt + Nv + G in all, each of D numbers.
    Indices are int64 or int32.

    Args:
        token_ids: [Nt] in [0, V); embedding: [V, D]. Both or neither.
        visual: [Nv, D], or None.
        visual_position_ids: [Nv] in [0, P); visual_position_embedding: [P, D]. Both or neither.
        latents: [G, D], or None; the tokens of a picture lie together.
        latent_position_ids: [G] in [0, Q); latent_position_embedding: [Q, D]. Both or neither.
        timestep_embedding: [M, D], one row per picture, or None; needs latent_cu_seqlens.
        latent_cu_seqlens: [M + 1], first latent token of each picture, then G.
        token_rows, visual_rows, latent_rows: [Nt], [Nv] and [G], the packed row of each source row, together a
            permutation of 0 .. S - 1. Given for all sources that are there, or for none; then text, visual and latents
            follow each other.
        length: S, to be checked against the sources; None takes their sum.
        dtype: of the result; None takes that of latents, else visual, else embedding.

    Returns:
        [S, D]. Gradients reach every floating argument that requires one.

    Raises:
        ValueError: shapes, dtypes or lengths that do not fit together; the message starts with the argument's name. On
            the CPU also an index outside its range, a packed row that occurs twice, latent_cu_seqlens that do not rise
            from 0 to G. To look for those on a GPU, the host would have to wait for it; there they are the caller's
            duty.
    """
    sources = Sources(
        *(token_ids, embedding, token_rows, visual, visual_rows, visual_position_ids, visual_position_embedding),
        *(latents, latent_rows, latent_position_ids, latent_position_embedding, timestep_embedding, latent_cu_seqlens),
    )
    _check(sources)
    total = sum(sources.counts())
    if length is not None and length != total:
        raise ValueError(f"length: expected {total}, the rows of all sources, got {length}")
    if dtype is None:
        dtype = next(x for x in (latents, visual, embedding) if x is not None).dtype
    expect(dtype in FLOATING, "dtype", "torch.bfloat16, float16, float32 or float64", dtype)
    return _op(*sources, total, dtype)
