"""Pictures of mixed sizes, uint8, to normalised patch tokens of one size, in one launch.

Symbols: image i is [H_i, W_i, 3] uint8 and becomes h_i x w_i pixels, n_i = (h_i / P) * (w_i / P) patches of
F = P * P * 3 numbers. Along each axis the picture goes through one banded filter: Pillow's antialiased bicubic
(a = -0.5, support scaled by the downscale factor), preceded by a Gaussian where blur_sigma > 0, both multiplied into
one table of weights on the host and kept (`image_filter.py`). As in Pillow the weights are integers, 22 bits after the
point, and the result of each axis is rounded and clipped to uint8. So all arithmetic is exact: the bits are Pillow's,
and the same ones on every device.

Why ours: no library reads uint8 and writes patches. The authors resize on the CPU and send fp32 pictures and patches
over the bus; here the source is read where it lies (kernels take addresses, nothing is concatenated) and every patch
is written once. From memory each byte comes once; the taps that share it, and the lines of neighbouring programs, ask
the caches for it about six times (1024 to 224). Nothing is saved: uint8 has no gradient.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.image_filter import PRECISION, Size, resized
from ..common.image_plan import addresses, checked, packed, pairs, plan, token_count
from ..common.implementation import implementation
from ..common.optional_triton import LAUNCH, tl, triton
from ..common.torch_op import torch_op

ROWS = 16  # output lines of one program, and source rows that it filters at a time: the smallest side of a product
WARPS = 16  # 8 accumulators per thread: with fewer warps, registers leave an eighth of the warps


def reference_blur_patchify(
    images: Sequence[Tensor],
    sizes: Sequence[Size],
    patch_size: int,
    blur_sigma: float,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """The operation in plain torch, one picture after another."""
    wide = torch.promote_types(dtype, torch.float32)
    tokens = []
    for image, (h, w) in zip(images, sizes, strict=True):
        pixels = resized(image, (h, w), blur_sigma)
        rows = pixels.reshape(h // patch_size, patch_size, w // patch_size, patch_size * 3).transpose(1, 2)
        tokens.append(rows.reshape(-1, patch_size**2, 3))
    x = torch.cat(tokens).to(wide)
    # A tensor as divisor, because CUDA turns division by a Python number into a multiplication.
    x = x.div_(x.new_full((), 255.0)).sub_(x.new_tensor(mean)).div_(x.new_tensor(std))
    return x.flatten(1).to(dtype)


FIELDS: Any = tl.constexpr(11)  # columns of Plan.images
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
    """Pixels [BY, BC] as int32: output lines line .. line + lines - 1, columns x channels column .. column + columns.

    Names are those of a picture whose width is filtered first; a turned one comes with its axes exchanged.

    Blocks of BR source rows are filtered across, tap by tap; the rounded rows then meet the weights of the other axis
    in a matrix product. A weight has two parts of at most 11 bits and a sign, exact in fp16; a pixel has 8, so the
    fp32 sum of 16 products is exact.
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
    """(value / 255 - mean) / std per channel, correctly rounded at each step like torch's."""
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
    # The tile is in picture order; memory wants patch order, in which neighbours are neighbours and stores are wide.
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


def launch_blur_patchify(
    images: Sequence[Tensor],
    sizes: Sequence[Size],
    patch_size: int,
    blur_sigma: float,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """The same by the Triton kernel: one launch for all pictures, however their sizes differ."""
    images = [packed(x) for x in images]
    features, device = patch_size**2 * 3, images[0].device
    shapes = tuple((x.shape[0], x.shape[1]) for x in images)
    lines = math.ceil(patch_size / math.ceil(patch_size / ROWS))
    todo = plan(shapes, tuple(sizes), patch_size, lines, blur_sigma, device)
    out = torch.empty((todo.tokens, features), dtype=dtype, device=device)
    blur_patchify_forward[(len(todo.programs),)](
        addresses(images, sizes),
        todo.images,
        todo.tables,
        todo.programs,
        out,
        *mean,
        *std,
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


@torch_op("blur_patchify")
def _blur_patchify(
    images: list[Tensor],
    sides: list[int],
    patch_size: int,
    blur_sigma: float,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
) -> Tensor:
    sizes = pairs(sides)
    run = (
        launch_blur_patchify
        if implementation(images[0], images[0].new_empty(0, dtype=dtype)) == "triton"
        else reference_blur_patchify
    )
    return run(images, sizes, patch_size, blur_sigma, mean, std, dtype)


@_blur_patchify.register_fake
def _(images, sides, patch_size, blur_sigma, mean, std, dtype):
    return images[0].new_empty((token_count(sides, patch_size), patch_size**2 * 3), dtype=dtype)


def blur_patchify(
    images: Sequence[Tensor],
    *,
    size: Size | Sequence[Size],
    patch_size: int,
    blur_sigma: float = 0.0,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """Blur, resize, normalise and cut into patches; one launch for all images.

    Args:
        images: uint8 [H, W, 3] each, any sizes, all on one device; rows may be strided. An empty list gives [0, F].
        size: (h, w) in pixels for all, or one pair per image; multiples of patch_size.
        blur_sigma: of the Gaussian before the resize, in output pixels (times H / h and W / w in source pixels); edge
            pixels are repeated, the kernel ends at 4 sigma. 0 is off.
        mean, std: of pixels in [0, 1], one number or one per channel: (x / 255 - mean) / std in fp32.
        dtype: of the result.

    Returns:
        [sum of n_i, patch_size**2 * 3]; patches row-major, images in order; features over patch row, patch column,
        channel (fastest). No gradient.
    """
    sides, means, stds = checked(images, size, patch_size, blur_sigma, mean, std)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype: expected a floating-point dtype, got {dtype}")
    if len(images) == 0:
        return torch.empty((0, patch_size**2 * 3), dtype=dtype)
    return _blur_patchify(list(images), sides, patch_size, float(blur_sigma), means, stds, dtype)
