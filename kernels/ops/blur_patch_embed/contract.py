"""Pictures of mixed sizes, uint8, to the embeddings that a vision tower starts from; patches are never written to
memory.

Symbols as in `blur_patchify`: F = P * P * 3 numbers of a patch, N patches of all pictures; and D numbers of an
embedding. The result is patches @ weight.T + bias + position_embedding[position_ids], [N, D] in the dtype of the
weight. Patches are rounded to that dtype; product and sums are fp32, and are rounded once, at the end.

Why ours: a library's product needs its operand in memory. Here each program filters the pixels of a few patches, keeps
them on the chip, and multiplies them with one tile of the weight after another.

Kept for the backward pass: pictures and position_ids, nothing that was computed. The gradient of the weight is a
product of a library, for which the patches are computed again and do pass through memory, [N, F] for a moment. The
other gradients need no patches.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blur_patchify.contract import reference_blur_patchify
from ..blur_patchify.kernels import launch_blur_patchify
from ..common.arguments import autocast_dtype, expect_tensors
from ..common.image_filter import Size
from ..common.image_plan import Preparation, checked
from ..common.implementation import implementation
from ..common.torch_op import torch_op
from .kernels import Embedding, launch_blur_patch_embed


def reference_blur_patch_embed(images: Sequence[Tensor], embedding: Embedding, preparation: Preparation) -> Tensor:
    """Embeddings [N, D] in the dtype of the weight, in plain torch."""
    weight, bias, position_embedding, position_ids = embedding
    wide = torch.promote_types(weight.dtype, torch.float32)
    patches = reference_blur_patchify(images, preparation, weight.dtype)
    with torch.autocast(weight.device.type, enabled=False):
        product = F.linear(patches.to(wide), weight.to(wide), bias.to(wide))
    return (product + position_embedding[position_ids].to(wide)).to(weight.dtype)


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
    compute = launch_blur_patch_embed if implementation(weight) == "triton" else reference_blur_patch_embed
    embedding = Embedding(weight, bias, position_embedding, position_ids)
    return compute(images, embedding, Preparation(sides, patch_size, blur_sigma, mean, std))


@_blur_patch_embed.register_fake
def _(images, weight, bias, position_embedding, position_ids, *preparation):
    return weight.new_empty((Preparation(*preparation).patches(), weight.shape[0]))


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
        compute = launch_blur_patchify if implementation(grad) == "triton" else reference_blur_patchify
        patches = compute(images, Preparation(sides, patch_size, blur_sigma, mean, std), grad.dtype)
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
    grad, images, position_ids, positions, bias_dtype, position_dtype, needed, *preparation
) -> tuple[Tensor, Tensor, Tensor]:
    width = grad.shape[1]
    shapes: list[Any] = [(width, Preparation(*preparation).features()), (width,), (positions, width)]
    made = [
        grad.new_empty(shape if need else 0, dtype=dtype if need else grad.dtype)
        for shape, need, dtype in zip(shapes, needed, (grad.dtype, bias_dtype, position_dtype), strict=True)
    ]
    return made[0], made[1], made[2]


def _setup(ctx: Any, inputs: Any, output: Tensor) -> None:
    images, _, bias, position_embedding, position_ids, *ctx.preparation = inputs
    ctx.save_for_backward(position_ids, *images)
    ctx.positions = len(position_embedding)
    ctx.dtypes = bias.dtype, position_embedding.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    position_ids, *images = ctx.saved_tensors
    needed = [bool(x) for x in ctx.needs_input_grad[1:4]]
    given = _blur_patch_embed_backward(
        grad.contiguous(), images, position_ids, ctx.positions, *ctx.dtypes, needed, *ctx.preparation
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
    """Blur, resize, normalise pictures, cut them into patches and embed those; one launch for all pictures.

    Args:
        images, size, patch_size, blur_sigma, mean, std: as for `blur_patchify`.
        weight: [D, patch_size**2 * 3], its columns in the order of a patch's numbers in `blur_patchify`.
        bias: [D].
        position_embedding: [P, D].
        position_ids: [N] int64, the row of position_embedding of each patch.

    Returns:
        [N, D] in the dtype of weight, or autocast's where it is on. Gradients for weight, bias, position_embedding.

    Raises:
        ValueError: an argument of another kind, shape, dtype or device; the message starts with the argument's name.
    """
    preparation = checked(images, size, patch_size, blur_sigma, mean, std)
    expect_tensors(weight=weight, bias=bias, position_embedding=position_embedding, position_ids=position_ids)
    tokens, features = preparation.patches(), preparation.features()
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
    return _blur_patch_embed(list(images), weight, bias, position_embedding, position_ids, *preparation)
