"""The adaptive LayerNorm of one block of the MAR denoiser."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ops.case import Case, Gate, Inputs, Step, gradients
from reca_fast.kernels import adaln_modulate
from reca_fast.kernels.adaln_modulate.kernels import Needs, Norm, launch_modulate, launch_modulate_backward
from reca_fast.kernels.common.optional_triton import tl


def make_inputs(
    shape: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    rows, width = shape["rows"], shape["width"]

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).to(dtype)

    modulation = normal(rows, 3 * width)
    return {
        "hidden_states": normal(rows, width).requires_grad_(),
        "shift": modulation[:, :width].requires_grad_(),
        "scale": modulation[:, width : 2 * width].requires_grad_(),
        "weight": normal(width).requires_grad_(),
        "bias": normal(width).requires_grad_(),
    }


def ours(inputs: Inputs) -> list[Tensor]:
    x, shift, scale, weight, bias = inputs.values()
    return gradients(adaln_modulate(x, shift, scale, weight=weight, bias=bias), inputs)


def eager(inputs: Inputs) -> list[Tensor]:
    """Under autocast the norm is fp32 and so is what follows, up to the cast for the product that reads it."""
    x, shift, scale, weight, bias = inputs.values()
    hat = F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), 1e-6)
    return gradients((hat * (1 + scale) + shift).to(x.dtype), inputs)


def peers() -> dict[str, Step]:
    try:
        from liger_kernel.ops import layer_norm
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        layer_norm.rsqrt = lambda x: tl.rsqrt(x)  # it takes libdevice's, which the interpreter cannot call

    def liger(inputs: Inputs) -> list[Tensor]:
        x, shift, scale, weight, bias = inputs.values()
        hat = layer_norm.LigerLayerNormFunction.apply(x, weight, bias, 1e-6)
        return gradients(hat * (1 + scale) + shift, inputs)

    return {"liger": liger}


def compile_all() -> None:
    """By itself; as a part of the residual block it is compiled there."""
    for width, dtype in ((1280, torch.bfloat16), (1536, torch.float32)):
        x, vector = torch.zeros(64, width, dtype=dtype), torch.zeros(width)
        shift, scale, _ = torch.zeros(64, 3 * width, dtype=dtype).chunk(3, dim=-1)
        launch_modulate(x, shift, scale, Norm(vector, vector, 1e-6), dtype)
        launch_modulate_backward(x, x, scale, Norm(vector, vector, 1e-6), Needs(True, True, True))
        if width == 1280:  # frozen, without an affine part, behind frozen layers
            for affine, need_x in ((vector, True), (None, True), (vector, False)):
                launch_modulate(x, shift, scale, Norm(affine, affine, 1e-6), dtype)
                launch_modulate_backward(x, x, scale, Norm(affine, affine, 1e-6), Needs(need_x, True, not need_x))


CASE = Case(
    name="adaln_modulate",
    about="LayerNorm scaled and shifted by the condition, in one block of the MAR denoiser",
    shapes={"real": {"rows": 48 * 256 * 4, "width": 1536}, "small": {"rows": 64, "width": 1536}},
    inputs=make_inputs,
    ours=ours,
    eager=eager,
    compile=compile_all,
    # The modulation's backward keeps two sums per column beside the row: at 64 registers it would spill.
    gates={"adaln_modulate_forward": Gate(64, 0.5), "adaln_modulate_backward": Gate(80, 0.375)},
    peers=peers(),
    goal="1 launch each way (and the sum of the weights' gradients), at most 1.5 times the minimum",
    max_launches=5,
    max_ratio=1.5,
)
