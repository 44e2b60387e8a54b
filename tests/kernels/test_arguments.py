"""Every public operation refuses what it cannot use by a ValueError that names an argument, whatever argument it is."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import reca_fast.kernels as kernels

ones = torch.ones
STEPS = torch.zeros(5, dtype=torch.int64)
GOOD: dict[str, dict[str, Any]] = {
    "adaln_modulate": {
        **{"hidden_states": ones(5, 8), "shift": ones(5, 8), "scale": ones(5, 8)},
        **{"weight": ones(8), "bias": ones(8)},
    },
    "blur_patch_embed": {
        **{"images": [torch.zeros(28, 28, 3, dtype=torch.uint8)], "weight": ones(4, 588), "bias": ones(4)},
        **{"position_embedding": ones(9, 4), "position_ids": torch.arange(4), "size": (28, 28), "patch_size": 14},
        **{"mean": 0.5, "std": 0.5},
    },
    "blur_patchify": {
        **{"images": [torch.zeros(28, 28, 3, dtype=torch.uint8)], "size": (28, 28), "patch_size": 14},
        **{"mean": 0.5, "std": 0.5, "dtype": torch.float32},
    },
    "flow_interpolate": {"latents": ones(5, 8), "timesteps": ones(5) / 2, "noise": ones(5, 8)},
    "flow_matching_loss": {
        **{"prediction": ones(5, 8), "latents": ones(5, 8), "timesteps": ones(5) / 2, "noise": ones(5, 8)},
        "row_weight": ones(5),
    },
    "fused_linear_cross_entropy": {
        **{"hidden_states": ones(5, 8), "weight": ones(16, 8), "labels": STEPS, "bias": ones(16)},
    },
    "gated_residual": {"hidden_states": ones(5, 8), "gate": ones(5, 8), "update": ones(5, 8)},
    "mar_diffusion_loss": {
        **{"prediction": ones(5, 16), "latents": ones(5, 8), "timesteps": STEPS, "noise": ones(5, 8)},
        "row_weight": ones(5),
    },
    "mar_noise": {"latents": ones(5, 8), "timesteps": STEPS, "noise": ones(5, 8)},
    "mar_residual_block": {
        **{"hidden_states": ones(5, 8), "modulation": ones(5, 24), "ln_weight": ones(8), "ln_bias": ones(8)},
        **{"fc1_weight": ones(8, 8), "fc1_bias": ones(8), "fc2_weight": ones(8, 8), "fc2_bias": ones(8)},
    },
    "qk_norm_rope": {
        **{"q": ones(5, 4, 8), "k": ones(5, 2, 8), "q_weight": ones(8), "k_weight": ones(8)},
        **{"cos": ones(5, 8), "sin": ones(5, 8)},
    },
    "rms_norm": {"hidden_states": ones(5, 8), "weight": ones(8)},
    "swiglu": {"gate": ones(5, 8), "up": ones(5, 8)},
    "template_concat": {
        **{"latents": ones(6, 8), "latent_position_ids": torch.arange(6), "latent_position_embedding": ones(9, 8)},
        **{"timestep_embedding": ones(1, 8), "latent_cu_seqlens": torch.tensor([0, 6], dtype=torch.int32)},
    },
    "varlen_attention": {
        **{"q": ones(5, 4, 8), "k": ones(5, 2, 8), "v": ones(5, 2, 8)},
        "segments": kernels.Varlen.from_lengths([5], [5], causal=False),
    },
}
ARGUMENTS = [pytest.param(op, name, id=f"{op}-{name}") for op in GOOD for name in GOOD[op]]
NO_OPERATIONS = {
    *("available_backends", "choose_backend", "implementation", "kernel_choices", "kernels", "to_device"),
    *("use_kernels", "Varlen", "BACKENDS"),
}


def test_no_operation_is_left_out() -> None:
    assert set(kernels.__all__) == GOOD.keys() | NO_OPERATIONS


def operation(name: str) -> Callable[..., Any]:
    return getattr(kernels, name)


def refuses(op: str, **changed: Any) -> None:
    """By the name of an argument of the operation (of two that do not fit together, either), or of a part of one."""
    with pytest.raises(ValueError) as refused:
        operation(op)(**(GOOD[op] | changed))
    names = {*inspect.signature(operation(op)).parameters, "cu_seqlens_q"}
    assert set(re.match(r"[a-z0-9_, ]+", str(refused.value))[0].split(", ")) <= names, refused.value


@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
def test_what_is_no_tensor_of_numbers(op: str, name: str) -> None:
    given = GOOD[op][name]
    for wrong in (object(), torch.zeros(1, 1, 1, 1, 1, dtype=torch.complex64), torch.zeros((), dtype=torch.bool)):
        refuses(op, **{name: wrong})
    if isinstance(given, Tensor):
        refuses(op, **{name: [1.0]})
        refuses(op, **{name: given.to("meta")})
        refuses(op, **{name: given.unsqueeze(-1).expand(*given.shape, 3)})


@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
def test_integers_for_floats_and_floats_for_integers(op: str, name: str) -> None:
    given = GOOD[op][name]
    if name == "row_weight" or not isinstance(given, Tensor):
        pytest.skip("row weights may be integers; other arguments that are not tensors have no dtype")
    refuses(op, **{name: given.long() if given.is_floating_point() else given.float()})


@pytest.mark.parametrize(
    ("op", "name"), [("swiglu", "up"), ("qk_norm_rope", "k"), ("varlen_attention", "k"), ("varlen_attention", "v")]
)
def test_mixed_dtypes_are_refused_by_name(op: str, name: str) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        refuses(op, **{name: GOOD[op][name].to(dtype)})


@pytest.mark.parametrize("op", [op for op in GOOD if "eps" in inspect.signature(operation(op)).parameters])
def test_an_eps_that_is_none_is_refused_by_name(op: str) -> None:
    for eps in (-1e-6, float("nan"), float("inf"), None, "1e-6", True):
        refuses(op, eps=eps)
