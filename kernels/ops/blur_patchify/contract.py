"""Pictures of mixed sizes, uint8, to normalised patches of one size, in one launch.

Symbols: picture i is [H_i, W_i, 3] uint8 and becomes h_i x w_i pixels, that is n_i = (h_i / P) * (w_i / P) patches of
F = P * P * 3 numbers, P being the side of a patch in pixels.

Along each axis the picture goes through one banded filter: Pillow's antialiased bicubic (a = -0.5, support scaled by
the downscale factor), preceded by a Gaussian where blur_sigma > 0. Both are multiplied into one table of weights, which
is computed on the host and kept (common/image_filter.py). As in Pillow the weights are integers with 22 bits after the
point, and the result of each axis is rounded and clipped to uint8. So all arithmetic is exact: the bits are Pillow's,
and they are the same on every device.

Why ours: no library reads uint8 and writes patches. The authors resize on the CPU and send fp32 pictures and patches
over the bus. Here the source is read where it lies (kernels take addresses, nothing is concatenated) and every patch is
written once. Each byte of the source comes once from memory; the taps that share it, and the lines of neighbouring
programs, ask the caches for it about six times (1024 to 224 pixels). Nothing is kept for a backward pass, since uint8
has no gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.image_filter import Size, resized
from ..common.image_plan import Preparation, checked
from ..common.implementation import implementation
from ..common.torch_op import torch_op
from .kernels import launch_blur_patchify


def reference_blur_patchify(images: Sequence[Tensor], preparation: Preparation, dtype: torch.dtype) -> Tensor:
    """Patches [N, F] in `dtype`, in plain torch."""
    wide, patch_size = torch.promote_types(dtype, torch.float32), preparation.patch_size
    tokens = []
    for image, (h, w) in zip(images, preparation.sizes(), strict=True):
        pixels = resized(image, (h, w), preparation.blur_sigma)
        rows = pixels.reshape(h // patch_size, patch_size, w // patch_size, patch_size * 3).transpose(1, 2)
        tokens.append(rows.reshape(-1, patch_size**2, 3))
    x = torch.cat(tokens).to(wide)
    # A tensor as divisor, because CUDA turns division by a Python number into a multiplication.
    x = x.div_(x.new_full((), 255.0)).sub_(x.new_tensor(preparation.mean)).div_(x.new_tensor(preparation.std))
    return x.flatten(1).to(dtype)


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
    result = images[0].new_empty(0, dtype=dtype)
    compute = launch_blur_patchify if implementation(images[0], result) == "triton" else reference_blur_patchify
    return compute(images, Preparation(sides, patch_size, blur_sigma, mean, std), dtype)


@_blur_patchify.register_fake
def _(images, *preparation_and_dtype):
    *preparation, dtype = preparation_and_dtype
    made = Preparation(*preparation)
    return images[0].new_empty((made.patches(), made.features()), dtype=dtype)


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
    """Blur, resize, normalise pictures and cut them into patches; one launch for all pictures.

    Args:
        images: uint8 [H, W, 3] each, any sizes, all on one device; rows may be strided. An empty list gives [0, F].
        size: (h, w) in pixels after the resize, for all pictures, or one pair per picture; multiples of patch_size.
        patch_size: side of a patch in pixels.
        blur_sigma: of a Gaussian before the resize, in output pixels; 0 is none. The Gaussian ends at 4 sigma, and the
            pixels of the edge are repeated beyond it.
        mean, std: of pixels in [0, 1], one number or one per channel: (x / 255 - mean) / std in fp32.
        dtype: of the result.

    Returns:
        [patches of all pictures, patch_size**2 * 3]. Pictures come in order and the patches of each row by row; the
        numbers of a patch run over its rows, then its columns, then the channels, which change fastest. No gradient.

    Raises:
        ValueError: an argument of another kind or shape; the message starts with the argument's name.
    """
    preparation = checked(images, size, patch_size, blur_sigma, mean, std)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype: expected a floating-point dtype, got {dtype}")
    if len(images) == 0:
        return torch.empty((0, preparation.features()), dtype=dtype)
    return _blur_patchify(list(images), *preparation, dtype)
