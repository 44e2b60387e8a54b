"""Triton kernel of `blur_patch_embed` and the function that launches it; contract.py says what it computes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..blur_patchify.kernels import FIELDS, ROWS, WARPS, filtered_tile, normalised
from ..common.image_plan import Preparation, addresses, packed, plan
from ..common.optional_triton import LAUNCH, tl, triton


class Embedding(NamedTuple):
    """What becomes of a patch: patch @ weight.T + bias + position_embedding[its position id]."""

    weight: Tensor
    """[D, F]"""
    bias: Tensor
    """[D]"""
    position_embedding: Tensor
    """[P, D]"""
    position_ids: Tensor
    """[N] int64, of every patch"""


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


def launch_blur_patch_embed(images: Sequence[Tensor], embedding: Embedding, preparation: Preparation) -> Tensor:
    """Embeddings [N, D] in the dtype of the weight of uint8 pictures [H, W, 3]."""
    images = [packed(x) for x in images]
    weight, patch_size = embedding.weight, preparation.patch_size
    todo = plan(images, preparation, lines=patch_size)
    out = torch.empty((preparation.patches(), weight.shape[0]), dtype=weight.dtype, device=weight.device)
    blur_patch_embed_forward[(len(todo.programs),)](
        addresses(images, preparation.sizes()),
        todo.images,
        todo.tables,
        todo.programs,
        *(x.contiguous() for x in embedding),
        out,
        *preparation.mean,
        *preparation.std,
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
