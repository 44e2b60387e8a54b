"""One residual block of the MAR denoiser, without its matrix products."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ops.case import Gate, Inputs, Minimum, OpBench, gradients
from reca_fast.kernels import mar_residual_block
from reca_fast.kernels.adaln_modulate import launch_into, launch_modulate
from reca_fast.kernels.mar_residual_kernels import (
    launch_gate,
    launch_gate_backward,
    launch_silu,
    launch_silu_backward,
)


def make_inputs(
    shape: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    rows, width = shape["rows"], shape["width"]

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).mul(scale).to(dtype).requires_grad_()

    return {
        "hidden_states": normal(rows, width),
        "modulation": normal(rows, 3 * width),
        "ln_weight": normal(width),
        "ln_bias": normal(width),
        "fc1_weight": normal(width, width, scale=width**-0.5),
        "fc1_bias": normal(width),
        "fc2_weight": normal(width, width, scale=width**-0.5),
        "fc2_bias": normal(width),
    }


def ours(inputs: Inputs) -> list[Tensor]:
    return gradients(mar_residual_block(*inputs.values()), inputs)


def eager(inputs: Inputs) -> list[Tensor]:
    """As under autocast: the norm and the modulation in fp32, products in the model's dtype."""
    a, modulation, ln_weight, ln_bias, w1, b1, w2, b2 = inputs.values()
    shift, scale, gate = modulation.chunk(3, dim=-1)
    h = F.layer_norm(a.float(), a.shape[-1:], ln_weight.float(), ln_bias.float(), 1e-6) * (1 + scale) + shift
    return gradients(a + gate * F.linear(F.silu(F.linear(h.to(w1.dtype), w1, b1)), w2, b2), inputs)


def minimum(shape: Mapping[str, int], dtype: torch.dtype) -> Minimum:
    """Elementwise passes between products. Forward 3 + 1 and 3 + 1 (SiLU inside a product), backward 2 + 4 + 4 + 5."""
    return Minimum(
        shape["rows"] * shape["width"] * dtype.itemsize * (8 + 15), 3 * 2 * 2.0 * shape["rows"] * shape["width"] ** 2
    )


def compile_all() -> None:
    for width in (1024, 1536):
        x, vector = torch.zeros(64, width, dtype=torch.bfloat16), torch.zeros(width)
        modulation = torch.zeros(64, 3 * width, dtype=torch.bfloat16)
        shift, scale, gate = modulation.chunk(3, dim=-1)
        partials = torch.zeros(2, 4, width)
        launch_modulate(x, shift, scale, vector, vector, 1e-6, x.dtype)
        launch_silu(x)
        launch_gate(x, gate, x)
        launch_gate_backward(x, gate, x, gate, x, partials[:, 3])
        launch_silu_backward(x, x, x, x, partials[:, 2])
        outputs = {"for_x": x, "for_shift": shift, "for_scale": scale, "forward_out": x, "partials": partials}
        launch_into(x, x, scale, vector, vector, 1e-6, residual=x, shift=shift, **outputs)


BENCH = OpBench(
    name="mar_residual_block",
    about="a residual block of the MAR denoiser: everything around its two matrix products",
    shapes={"real": {"rows": 48 * 256 * 4, "width": 1536}, "small": {"rows": 64, "width": 1536}},
    inputs=make_inputs,
    ours=ours,
    eager=eager,
    minimum=minimum,
    compile=compile_all,
    # The modulation's backward keeps two sums per column beside the row: at 64 registers it would spill.
    gates={
        "adaln_modulate_forward": Gate(64, 0.5),
        "adaln_modulate_backward": Gate(80, 0.375),
        "silu_forward": Gate(64, 0.5),
        "silu_backward": Gate(64, 0.5),
        "gated_residual_forward": Gate(64, 0.5),
        "gated_residual_backward": Gate(64, 0.5),
    },
    goal="3 launches forward, 3 backward (and the sum of the vectors' gradients), at most 1.5 times the minimum",
    max_launches=11,
    max_ratio=1.5,
)
