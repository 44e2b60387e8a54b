"""Pictures of mixed sizes, uint8, to the embeddings that a vision tower starts from; the patches stay on the chip.

Symbols as in `blur_patchify`: F = P * P * 3 numbers a patch, N patches of all images; D channels. The result is
patches @ weight.T + bias + position_embedding[position_ids], [N, D] in the dtype of the weight: patches are rounded to
that dtype, the product and the sums are fp32, one rounding at the end.

Why ours: a library product needs its operand in memory. Each program filters the pixels of a few patches, keeps them,
and multiplies them with one tile of the weight after another. Saved for backward: images and position_ids, nothing that
was computed. The gradient of the weight is a library product, for which the patches are computed again and do pass
through memory ([N, F] for a moment); the other gradients do not need them.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blur_patchify.contract import (
    FIELDS,
    ROWS,
    WARPS,
    filtered_tile,
    launch_blur_patchify,
    normalised,
    reference_blur_patchify,
)
from ..common.arguments import autocast_dtype, expect_tensors
from ..common.image_filter import Size
from ..common.image_plan import addresses, checked, packed, pairs, plan, token_count
from ..common.implementation import implementation
from ..common.optional_triton import LAUNCH, tl, triton
from ..common.torch_op import torch_op


def reference_blur_patch_embed(
    images: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    position_embedding: Tensor,
    position_ids: Tensor,
    sizes: Sequence[Size],
    patch_size: int,
    blur_sigma: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    wide = torch.promote_types(weight.dtype, torch.float32)
    patches = reference_blur_patchify(images, sizes, patch_size, blur_sigma, mean, std, weight.dtype)
    with torch.autocast(weight.device.type, enabled=False):
        product = F.linear(patches.to(wide), weight.to(wide), bias.to(wide))
    return (product + position_embedding[position_ids].to(wide)).to(weight.dtype)


@triton.jit
def blur_patch_embed_forward(
    addresses,
    images,
    tables,
    programs,
    weight,
    bias,
    position_embedding,
    position_ids,
    out,
    mean0,
    mean1,
    mean2,
    std0,
    std1,
    std2,
    PATCH: tl.constexpr,
    D: tl.constexpr,
    BY: tl.constexpr,
    BC: tl.constexpr,
    BR: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    job = programs + tl.program_id(0) * 4
    image, line, patch, patches = tl.load(job), tl.load(job + 1), tl.load(job + 2), tl.load(job + 3)
    ROW: tl.constexpr = PATCH * 3
    FEATURES: tl.constexpr = PATCH * ROW
    tile = filtered_tile(addresses, images, tables, image, line, PATCH, patch * ROW, patches * ROW, BY, BC, BR)
    channel = (tl.arange(0, BC) % 3)[None, :] + tl.zeros([BY, 1], tl.int32)
    pixels = normalised(tile, channel, mean0, mean1, mean2, std0, std1, std2).to(weight.dtype.element_ty)
    pixels = tl.reshape(pixels, [BY * BC])

    about = images + image * FIELDS
    turned, first_token, across = tl.load(about), tl.load(about + 1), tl.load(about + 10)
    m = tl.arange(0, BM)
    real = m < patches
    beside = tl.where(turned != 0, across, 1)  # from one patch of this program to the next
    above = tl.where(turned != 0, 1, across)
    token = (first_token + (line // PATCH) * above + (patch + m) * beside).to(tl.int64)
    position = tl.load(position_ids + token, mask=real, other=0).to(tl.int64)
    for start in range(0, D, BN):
        n = start + tl.arange(0, BN)
        total = tl.zeros([BM, BN], tl.float32)
        for feature in range(0, FEATURES, BK):
            k = feature + tl.arange(0, BK)
            y, x = k // ROW, (k % ROW) // 3
            inner = tl.where(turned != 0, x, y) * BC + tl.where(turned != 0, y, x) * 3 + k % 3
            place = tl.minimum(inner[None, :] + m[:, None] * ROW, BY * BC - 1)
            part = tl.reshape(tl.gather(pixels, tl.reshape(place, [BM * BK]), 0), [BM, BK])
            rows = tl.load(
                weight + n[None, :].to(tl.int64) * FEATURES + k[:, None],
                mask=(n < D)[None, :] & (k < FEATURES)[:, None],
                other=0.0,
            )
            total = tl.dot(part, rows, total, input_precision="ieee")
        total += tl.load(bias + n, mask=n < D, other=0.0).to(tl.float32)[None, :]
        keep = real[:, None] & (n < D)[None, :]
        places = tl.load(position_embedding + position[:, None] * D + n[None, :], mask=keep, other=0.0)
        total += places.to(tl.float32)
        tl.store(out + token[:, None] * D + n[None, :], total.to(out.dtype.element_ty), mask=keep)


def launch_blur_patch_embed(
    images: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    position_embedding: Tensor,
    position_ids: Tensor,
    sizes: Sequence[Size],
    patch_size: int,
    blur_sigma: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    images = [packed(x) for x in images]
    shapes = tuple((x.shape[0], x.shape[1]) for x in images)
    todo = plan(shapes, tuple(sizes), patch_size, patch_size, blur_sigma, images[0].device)
    out = torch.empty((todo.tokens, weight.shape[0]), dtype=weight.dtype, device=weight.device)
    blur_patch_embed_forward[(len(todo.programs),)](
        addresses(images, sizes),
        todo.images,
        todo.tables,
        todo.programs,
        weight.contiguous(),
        bias.contiguous(),
        position_embedding.contiguous(),
        position_ids.contiguous(),
        out,
        *mean,
        *std,
        PATCH=patch_size,
        D=weight.shape[0],
        BY=max(ROWS, triton.next_power_of_2(patch_size)),
        BC=todo.columns,
        BR=ROWS,
        BM=max(ROWS, triton.next_power_of_2(todo.group)),
        BN=256,
        BK=32,
        num_warps=WARPS,
        num_stages=2,
        **LAUNCH,
    )
    return out


@torch_op("blur_patch_embed")
def _blur_patch_embed(
    images: list[Tensor],
    weight: Tensor,
    bias: Tensor,
    position_embedding: Tensor,
    position_ids: Tensor,
    sides: list[int],
    patch_size: int,
    blur_sigma: float,
    mean: list[float],
    std: list[float],
) -> Tensor:
    if position_ids.device.type == "cpu" and position_ids.numel():
        ids = position_ids.numpy()  # on a GPU this would wait for the device
        low, high = ids.min(), ids.max()
        if low < 0 or high >= len(position_embedding):
            raise ValueError(f"position_ids: expected 0 to {len(position_embedding) - 1}, got {low} to {high}")
    run = launch_blur_patch_embed if implementation(weight) == "triton" else reference_blur_patch_embed
    sizes = pairs(sides)
    return run(images, weight, bias, position_embedding, position_ids, sizes, patch_size, blur_sigma, mean, std)


@_blur_patch_embed.register_fake
def _(images, weight, bias, position_embedding, position_ids, sides, patch_size, blur_sigma, mean, std):
    return weight.new_empty((token_count(sides, patch_size), weight.shape[0]))


@torch_op("blur_patch_embed_backward")
def _blur_patch_embed_backward(
    grad: Tensor,
    images: list[Tensor],
    position_ids: Tensor,
    positions: int,
    bias_dtype: torch.dtype,
    position_dtype: torch.dtype,
    needed: list[bool],
    sides: list[int],
    patch_size: int,
    blur_sigma: float,
    mean: list[float],
    std: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(grad.dtype, torch.float32)
    grad_weight, grad_bias, grad_position = (grad.new_empty(0) for _ in range(3))
    if needed[0]:
        run = launch_blur_patchify if implementation(grad) == "triton" else reference_blur_patchify
        patches = run(images, pairs(sides), patch_size, blur_sigma, mean, std, grad.dtype)
        with torch.autocast(grad.device.type, enabled=False):
            grad_weight = grad.t() @ patches
    if needed[1]:
        grad_bias = grad.sum(0, dtype=wide).to(bias_dtype)
    if needed[2]:
        # Sorts by position on a GPU: deterministic, with fp32 sums.
        rows = grad.to(position_dtype)
        grad_position = torch.ops.aten.embedding_dense_backward(rows, position_ids, positions, -1, False)
    return grad_weight, grad_bias, grad_position


@_blur_patch_embed_backward.register_fake
def _(
    grad, images, position_ids, positions, bias_dtype, position_dtype, needed, sides, patch_size, blur_sigma, mean, std
) -> tuple[Tensor, Tensor, Tensor]:
    width = grad.shape[1]
    shapes: list[Any] = [(width, patch_size**2 * 3), (width,), (positions, width)]
    made = [
        grad.new_empty(shape if need else 0, dtype=dtype if need else grad.dtype)
        for shape, need, dtype in zip(shapes, needed, (grad.dtype, bias_dtype, position_dtype), strict=True)
    ]
    return made[0], made[1], made[2]


def _setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    images, _, bias, position_embedding, position_ids, *ctx.options = inputs
    ctx.save_for_backward(position_ids, *images)
    ctx.positions = len(position_embedding)
    ctx.dtypes = bias.dtype, position_embedding.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    position_ids, *images = ctx.saved_tensors
    needed = [bool(x) for x in ctx.needs_input_grad[1:4]]
    given = _blur_patch_embed_backward(
        grad.contiguous(), images, position_ids, ctx.positions, *ctx.dtypes, needed, *ctx.options
    )
    gradients = (x if need else None for x, need in zip(given, needed, strict=True))
    return [None] * len(images), *gradients, None, None, None, None, None, None


_blur_patch_embed.register_autograd(_backward, setup_context=_setup)


def blur_patch_embed(
    images: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    position_embedding: Tensor,
    position_ids: Tensor,
    *,
    size: Size | Sequence[Size],
    patch_size: int,
    blur_sigma: float = 0.0,
    mean: float | Sequence[float],
    std: float | Sequence[float],
) -> Tensor:
    """Blur, resize, normalise, cut into patches, embed; one launch for all images.

    Args:
        images, size, patch_size, blur_sigma, mean, std: as for `blur_patchify`.
        weight: [D, patch_size**2 * 3], features over patch row, patch column, channel (fastest).
        bias: [D].
        position_embedding: [P, D].
        position_ids: [N] int64, the row of position_embedding of each patch.

    Returns:
        [N, D] in the dtype of weight, or autocast's where it is on. Gradients for weight, bias, position_embedding.
    """
    sides, means, stds = checked(images, size, patch_size, blur_sigma, mean, std)
    expect_tensors(weight=weight, bias=bias, position_embedding=position_embedding, position_ids=position_ids)
    tokens, features = token_count(sides, patch_size), patch_size**2 * 3
    if weight.dim() != 2 or weight.shape[1] != features or not weight.is_floating_point():
        raise ValueError(f"weight: expected [D, {features}] of floats, got {weight.dtype} {list(weight.shape)}")
    width = weight.shape[0]
    if bias.shape != (width,):
        raise ValueError(f"bias: expected [{width}], got {list(bias.shape)}")
    if position_embedding.dim() != 2 or position_embedding.shape[1] != width:
        raise ValueError(f"position_embedding: expected [P, {width}], got {list(position_embedding.shape)}")
    if position_ids.shape != (tokens,) or position_ids.dtype != torch.int64:
        got = f"{position_ids.dtype} {list(position_ids.shape)}"
        raise ValueError(f"position_ids: expected int64 [{tokens}], got {got}")
    named = {"bias": bias, "position_embedding": position_embedding, "position_ids": position_ids}
    if len(images):
        named["images"] = images[0]
    for name, table in (("bias", bias), ("position_embedding", position_embedding)):
        if not table.is_floating_point():
            raise ValueError(f"{name}: expected floats, got {table.dtype}")
    for name, tensor in named.items():
        if tensor.device != weight.device:
            raise ValueError(f"{name}: expected the device {weight.device}, got {tensor.device}")
    if (dtype := autocast_dtype(weight.device)) is not None:
        weight, bias = weight.to(dtype), bias.to(dtype)
    if len(images) == 0:
        return weight.new_empty((0, width)) + 0 * (weight.sum() + bias.sum() + position_embedding.sum())
    return _blur_patch_embed(
        list(images),
        weight,
        bias,
        position_embedding,
        position_ids,
        sides,
        patch_size,
        float(blur_sigma),
        means,
        stds,
    )
