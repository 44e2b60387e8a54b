"""What each operation must move and compute, forward and backward together, for planning a step before it runs.

Bytes are the minimum: every input read once, every output written once; what the kernels really move is within the
factors of docs/kernels.md. FLOPs are those of matrix products (a multiply-add is 2); elementwise work never limits
these operations.
"""

from typing import NamedTuple


class Cost(NamedTuple):
    """Bytes to and from memory, and floating-point operations of matrix products."""

    bytes: float
    flops: float = 0.0


def qk_norm_rope(*, tokens: int, heads: int, kv_heads: int, head_dim: int, itemsize: int = 2) -> Cost:
    """Forward: q and k in and out. Backward: gradient and saved input in, gradient out. Half of each fp32 table, twice;
    the weights are nothing.
    """
    numbers = tokens * (heads + kv_heads) * head_dim
    return Cost(numbers * 5 * itemsize + 2 * tokens * head_dim * 4)


def attention(
    *, pictures: int, queries: int, keys: int, heads: int, kv_heads: int, head_dim: int, itemsize: int = 2
) -> Cost:
    """Every query sees every key of its picture. Forward: q, k, v in, the result out, two products. Backward: those
    four and the gradient in, three gradients out, five products, since the scores are formed again.
    """
    rows, shared = queries * heads * head_dim, keys * kv_heads * head_dim
    numbers = pictures * ((2 * rows + 2 * shared) + (4 * rows + 4 * shared))
    return Cost(itemsize * numbers, 7 * 2.0 * pictures * queries * keys * heads * head_dim)


def flow_matching(*, tokens: int, channels: int, itemsize: int = 2) -> Cost:
    """`flow_interpolate` (fp32 latents and timesteps in, x_t out) and `flow_matching_loss` (fp32 latents and the
    prediction in, its gradient out), noise from a seed.
    """
    numbers = tokens * channels
    return Cost((4 + itemsize) * numbers + 4 * tokens + (4 + 2 * itemsize) * numbers)


def fused_linear_cross_entropy(*, rows: int, hidden_size: int, classes: int, itemsize: int = 2) -> Cost:
    """`rows` that count, `classes` in the range: three products; hidden states and weight in, gradients out."""
    return Cost(2 * itemsize * hidden_size * (rows + classes), 6.0 * rows * hidden_size * classes)


def template_concat(
    *, text: int, visual: int, latents: int, pictures: int, hidden_size: int, itemsize: int = 2
) -> Cost:
    """Rows by source; each picture has its share of visual and latent rows. Forward: every row in and out, the position
    rows of one picture and the timestep rows once. Backward: visual and latent rows in and out, timestep rows out.
    """
    forward = 2 * (text + visual + latents) + (visual + latents) // max(1, pictures) + pictures
    return Cost(itemsize * hidden_size * (forward + 2 * (visual + latents) + pictures))


def blur_patchify(*, pixels: int, patches: int, patch_size: int, itemsize: int = 2) -> Cost:
    """uint8 pictures of `pixels` in all in, patches out; no backward pass."""
    return Cost(3 * pixels + patches * patch_size**2 * 3 * itemsize)


def blur_patch_embed(
    *, pixels: int, patches: int, patch_size: int, width: int, positions: int, itemsize: int = 2
) -> Cost:
    """Forward: pictures, parameters and used position rows in, embeddings out. Backward: pictures and the gradient in,
    the gradients of all parameters and of the `positions` rows of the table out. Two products.
    """
    features = patch_size**2 * 3
    numbers = 2 * (features + 1) * width + 3 * patches * width + positions * width
    return Cost(2 * 3 * pixels + numbers * itemsize, 2 * 2.0 * patches * features * width)


def adaln_modulate(*, rows: int, width: int, itemsize: int = 2) -> Cost:
    """Forward: hidden states, shift, scale in, result out. Backward: the gradient, hidden states and scale in, the
    gradients of hidden states and scale out; that of shift is the incoming one.
    """
    return Cost(itemsize * rows * width * (4 + 5))


def mar_residual_block(*, rows: int, width: int, itemsize: int = 2) -> Cost:
    """Elementwise part: 8 rows of activations forward and 15 backward; two products of width x width, three times."""
    return Cost(itemsize * rows * width * (8 + 15), 3 * 2 * 2.0 * rows * width**2)


def mar_diffusion_loss(*, rows: int, channels: int, itemsize: int = 2) -> Cost:
    """x0 in and x_t out; prediction (twice as wide) in and its gradient out."""
    return Cost(itemsize * rows * channels * (1 + 1 + 2 + 2))
