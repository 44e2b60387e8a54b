"""One residual block of the MAR denoiser, without its matrix products."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ops.case import Case, Gate, Inputs, gradients, variant
from reca_fast.kernels import mar_residual_block
from reca_fast.kernels.adaln_modulate.kernels import Norm
from reca_fast.kernels.mar_residual_block.passes import BlockNeeds, Linear, launch_block, launch_block_backward


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


EVERYTHING = BlockNeeds(*[True] * 8)
FROZEN = BlockNeeds(True, True, *[False] * 6)
VECTORS = EVERYTHING._replace(fc1_weight=False, fc2_weight=False)
HIDDEN_STATES_FROZEN = EVERYTHING._replace(hidden_states=False)
MODULATION_FROZEN = EVERYTHING._replace(modulation=False)


def compile_all() -> None:
    """Harmon's widths with all gradients; fewer of them, or a residual stream in fp32, at the middle one."""
    for width in (1024, 1280, 1536):
        _compile(width, torch.bfloat16, EVERYTHING)
    _compile(1280, torch.bfloat16, FROZEN)
    with variant("seldom"):
        _compile(1280, torch.bfloat16, VECTORS, HIDDEN_STATES_FROZEN, MODULATION_FROZEN)
        _compile(1536, torch.bfloat16, VECTORS)
        _compile(1280, torch.float32, EVERYTHING)


def _compile(width: int, stream: torch.dtype, *wanted: BlockNeeds) -> None:
    a, modulation = torch.empty(64, width, dtype=stream), torch.empty(64, 3 * width, dtype=torch.bfloat16)
    norm = torch.empty(width)
    weight, bias = torch.empty(width, width, dtype=torch.bfloat16), torch.empty(width, dtype=torch.bfloat16)
    linear, layer_norm = Linear(weight, bias), Norm(norm, norm, 1e-6)
    _, pre, up = launch_block(a, modulation, layer_norm, linear, linear)
    for needs in wanted:
        launch_block_backward(a, a, modulation, layer_norm, weight, weight, pre, up, needs)


CASE = Case(
    name="mar_residual_block",
    about="a residual block of the MAR denoiser: everything around its two matrix products",
    shapes={"real": {"rows": 48 * 256 * 4, "width": 1536}, "small": {"rows": 64, "width": 1536}},
    inputs=make_inputs,
    ours=ours,
    eager=eager,
    compile=compile_all,
    # The modulation's backward keeps two sums per column beside the row: at 64 registers it would spill.
    gates={
        "adaln_modulate_forward": Gate(64, 0.5),
        "adaln_modulate_backward": Gate(80, 0.375),
        "adaln_modulate_backward seldom": Gate(128, 0.25),  # left room, ptxas takes it to load ahead
        "silu_forward": Gate(64, 0.5),
        "silu_backward": Gate(64, 0.5),
        "gated_residual_forward": Gate(64, 0.5),
        "gated_residual_backward": Gate(64, 0.5),
    },
    goal="3 launches forward, 3 backward (and the sum of the vectors' gradients), at most 1.5 times the minimum",
    max_launches=11,
    max_ratio=1.5,
)
