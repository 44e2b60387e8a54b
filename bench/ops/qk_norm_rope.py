"""Query and key normalisation with rotary embedding in one decoder layer of BAGEL."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.ops.case import Case, Gate, Inputs, Step, gradients
from reca_fast.kernels import qk_norm_rope
from reca_fast.kernels.common.optional_triton import tl
from reca_fast.kernels.qk_norm_rope.kernels import launch_backward, launch_forward

ARGUMENTS = ("q", "k", "q_weight", "k_weight", "cos", "sin")


def make_inputs(
    shape: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    tokens, dim = shape["tokens"], shape["head_dim"]

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).to(dtype).requires_grad_()

    angles = torch.arange(tokens, device=device)[:, None] / 10_000 ** (torch.arange(dim // 2, device=device) / dim)
    angles = torch.cat((angles, angles), dim=1)
    return {
        "q": normal(tokens, shape["heads"], dim),
        "k": normal(tokens, shape["kv_heads"], dim),
        "q_weight": normal(dim),
        "k_weight": normal(dim),
        "cos": angles.cos(),
        "sin": angles.sin(),
    }


def ours(inputs: Inputs) -> list[Tensor]:
    return gradients(qk_norm_rope(*(inputs[name] for name in ARGUMENTS)), inputs)


def eager(inputs: Inputs) -> list[Tensor]:
    """The authors' layer: fp32 norm with every step in memory, rows routed by index (here all to one expert), tables
    in the dtype of q, half-split rotation from copies.
    """
    q, k, q_weight, k_weight, cos, sin = (inputs[name] for name in ARGUMENTS)
    rows = torch.arange(len(q), device=q.device)
    cos, sin = (x.to(q.dtype).unsqueeze(1) for x in (cos, sin))

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        routed = x.new_zeros(x.shape)
        wide = x[rows].float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        routed[rows] = weight * wide.to(x.dtype)
        return routed

    def rotate(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin

    return gradients((rotate(norm(q, q_weight)), rotate(norm(k, k_weight))), inputs)


def peers() -> dict[str, Step]:
    try:
        from liger_kernel.ops import rms_norm
        from liger_kernel.ops.rope import LigerRopeFunction
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        rms_norm.rsqrt = lambda x: tl.rsqrt(x)  # it takes libdevice's, which the interpreter cannot call

    def liger(inputs: Inputs) -> list[Tensor]:
        q, k, q_weight, k_weight, cos, sin = (inputs[name] for name in ARGUMENTS)
        q, k = (
            rms_norm.LigerRMSNormFunction.apply(x, w, 1e-6, 0.0, "llama", False)
            for x, w in ((q, q_weight), (k, k_weight))
        )
        heads_first = (x.transpose(0, 1)[None] for x in (q, k))
        turned = LigerRopeFunction.apply(*heads_first, cos[None], sin[None])
        return gradients(tuple(x[0].transpose(0, 1) for x in turned), inputs)

    return {"liger": liger}


def compile_all() -> None:
    """bf16 with trained weights in fp32 and frozen ones in bf16, then other dtypes; more tokens change the grid."""
    tokens, dim, bf16, fp16, fp32 = 64, 128, torch.bfloat16, torch.float16, torch.float32
    ways = ((bf16, fp32, True), (bf16, bf16, True), (bf16, bf16, False), (fp16, fp32, True), (fp32, fp32, True))
    table = torch.empty(tokens, dim)
    for dtype, weight_dtype, need_weights in ways:
        q, k = (torch.empty(tokens, heads, dim, dtype=dtype) for heads in (28, 4))
        weight = torch.ones(dim, dtype=weight_dtype)
        launch_forward(q, k, weight, weight, table, table, 1e-6)
        launch_backward(q, k, q, k, weight, weight, table, table, 1e-6, need_weights)


def _shape(tokens: int) -> dict[str, int]:
    return {"tokens": tokens, "heads": 28, "kv_heads": 4, "head_dim": 128}


_GATE: dict[str, Any] = {"max_registers": 64, "min_occupancy": 0.5}

CASE = Case(
    name="qk_norm_rope",
    about="RMS norm of every query and key head, then rotary embedding, of one decoder layer",
    shapes={"real": _shape(36864), "small": _shape(32)},
    inputs=make_inputs,
    ours=ours,
    eager=eager,
    compile=compile_all,
    gates={
        "qk_norm_rope_forward": Gate(**_GATE),
        # A thread holds 4 numbers of either half. Wider accesses cost sums through shared memory: 1.47 ms for 0.26 ms.
        "qk_norm_rope_backward": Gate(**_GATE, store_bits=64),
    },
    peers=peers(),
    goal="1 launch each way, at most 1.3 times the minimum",
    max_launches=2,
    max_ratio=1.3,
)
