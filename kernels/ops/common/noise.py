"""Standard normal noise that is a pure function of (seed, token, channel), so that nobody has to store it.

Philox4x32-10 (Salmon et al. 2011) takes the seed (64 bits) as its key and (channel // 4, token, 0, 0) as its counter
and gives four 32-bit words; Box-Muller turns those into the normals of four neighbouring channels. So the noise of a
token's channel depends neither on how many tokens or channels there are nor on how a kernel divides them.

Box-Muller is written out here, since `tl.randn` takes full-range library sines and logarithms, with branches and double
precision, at 214 instructions per element. The angle here is a fraction of a turn, so folding it to an eighth of a turn
is exact and two short polynomials are within 1e-6; logarithm and root are the GPU's own instructions. No normal is
larger than sqrt(50 ln 2) = 5.9.

The reference computes the same words in int64 and the same polynomials in fp32. It agrees with the kernels to about
1e-6; it is worse only for the rare normals close to zero whose logarithm a GPU rounds to an absolute error of 2^-22.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .optional_triton import tl, triton

_LOW = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words from four words of a counter, by ten rounds; int64 tensors that hold 32-bit values."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _LOW, key >> 32
    for _ in range(10):
        # The product wraps around in int64, which leaves all 64 bits as they should be.
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c2 = (right >> 32 & _LOW) ^ c1 ^ k0, (left >> 32 & _LOW) ^ c3 ^ k1
        c1, c3 = right & _LOW, left & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def _two_normals(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    u, turns = ((first >> 8).float() + 0.5) * 2.0**-24, (second >> 8).float() * 2.0**-24
    radius = (u.log2() * -1.3862943611198906).clamp(min=0).sqrt()
    quarter = (turns * 4 + 0.5).floor()
    x = (turns - quarter * 0.25) * 6.283185307179586
    z = x * x
    sine = x * (1 + z * (-1.6666667e-1 + z * (8.3333310e-3 + z * -1.9840874e-4)))
    cosine = 1 + z * (-0.5 + z * (4.1666642e-2 + z * (-1.3888397e-3 + z * 2.4801587e-5)))
    number = quarter.int()
    swapped = (number & 1) != 0
    across, up = torch.where(swapped, sine, cosine), torch.where(swapped, cosine, sine)
    across = torch.where(((number + 1) & 2) != 0, -across, across)
    return radius * across, radius * torch.where((number & 2) != 0, -up, up)


def normal_noise(seed: int, tokens: int, channels: int, device: torch.device) -> Tensor:
    """fp32 [tokens, channels], the noise that the kernels compute from `seed`, 0 <= seed < 2^63."""
    group = torch.arange((channels + 3) // 4, device=device)
    token = torch.arange(tokens, device=device)[:, None]
    zero = torch.zeros((), dtype=torch.int64, device=device)
    w0, w1, w2, w3 = philox((group, token, zero, zero), seed)
    normals = torch.stack((*_two_normals(w0, w1), *_two_normals(w2, w3)), dim=-1)
    return normals.flatten(1)[:, :channels]


class Noise(NamedTuple):
    """Noise of some latents: a tensor, or the seed from which it is computed wherever it is needed."""

    given: Tensor | None
    """[tokens, channels], or None: then the seed counts."""
    seed: int

    def like(self, latents: Tensor) -> Tensor:
        """The noise itself, of the shape and on the device of latents [tokens, channels]."""
        if self.given is not None:
            return self.given
        return normal_noise(self.seed, len(latents), latents.shape[1], latents.device)


@triton.jit
def _two_normals_kernel(first, second):
    u = ((first >> 8).to(tl.float32) + 0.5) * 5.9604644775390625e-8
    turns = (second >> 8).to(tl.float32) * 5.9604644775390625e-8
    # The approximate logarithm may end above zero for u close to 1.
    radius = tl.sqrt(tl.maximum(tl.log2(u) * -1.3862943611198906, 0.0))
    quarter = tl.floor(turns * 4.0 + 0.5)
    x = (turns - quarter * 0.25) * 6.283185307179586
    z = x * x
    sine = x * (1.0 + z * (-1.6666667e-1 + z * (8.3333310e-3 + z * -1.9840874e-4)))
    cosine = 1.0 + z * (-0.5 + z * (4.1666642e-2 + z * (-1.3888397e-3 + z * 2.4801587e-5)))
    number = quarter.to(tl.int32)
    swapped = (number & 1) != 0
    across = tl.where(swapped, sine, cosine)
    up = tl.where(swapped, cosine, sine)
    across = tl.where(((number + 1) & 2) != 0, -across, across)
    return radius * across, radius * tl.where((number & 2) != 0, -up, up)


@triton.jit
def normal_tile(seed, rows, first_channel, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """fp32 [BLOCK_T, BLOCK_C]: the noise of the tokens `rows` [BLOCK_T] in BLOCK_C channels from `first_channel` on,
    which is a multiple of 4.
    """
    group = (first_channel // 4 + tl.arange(0, BLOCK_C // 4)).to(tl.uint32)[None, :]
    token = rows.to(tl.uint32)[:, None]
    zero = tl.zeros((BLOCK_T, BLOCK_C // 4), tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, group + zero, token + zero, zero, zero)
    a, b = _two_normals_kernel(w0, w1)
    c, d = _two_normals_kernel(w2, w3)
    return tl.join(tl.join(a, c), tl.join(b, d)).reshape(BLOCK_T, BLOCK_C)
