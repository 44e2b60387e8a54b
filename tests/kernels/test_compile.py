"""torch.compile traces each operation whole, and once more when the number of rows changes: then no more."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from reca_fast import kernels

WIDTH = 16
TABLE = torch.linspace(-1, 1, 40 * WIDTH).view(40, WIDTH)
SQUARE, VECTOR = TABLE[:WIDTH], TABLE[0]


def flow(prediction: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
    x_t = kernels.flow_interpolate(latents, timesteps, seed=3)
    return kernels.flow_matching_loss(prediction + x_t, latents, timesteps, seed=3)


def norm_and_rotary(q: Tensor, k: Tensor, cos: Tensor) -> Tensor:
    return torch.cat(kernels.qk_norm_rope(q, k, VECTOR, VECTOR, cos, cos), dim=1)


def modulation(hidden_states: Tensor, shift: Tensor) -> Tensor:
    return kernels.adaln_modulate(hidden_states, shift, shift, weight=VECTOR)


def block(hidden_states: Tensor, modulation: Tensor) -> Tensor:
    weights = VECTOR, VECTOR, SQUARE, VECTOR, SQUARE, VECTOR
    return kernels.mar_residual_block(hidden_states, modulation, *weights)


def diffusion(prediction: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
    x_t = kernels.mar_noise(latents, timesteps, seed=3)
    return kernels.mar_diffusion_loss(prediction + x_t.sum(), latents, timesteps, seed=3)


def packing(token_ids: Tensor, visual: Tensor, latents: Tensor, ends: Tensor, times: Tensor) -> Tensor:
    return kernels.template_concat(
        token_ids=token_ids,
        embedding=TABLE,
        visual=visual,
        latents=latents,
        latent_position_ids=torch.arange(len(latents)),
        latent_position_embedding=TABLE,
        latent_cu_seqlens=ends,
        timestep_embedding=times,
        length=len(token_ids) + len(visual) + len(latents),
    )


def norm_and_gate(hidden_states: Tensor, up: Tensor) -> Tensor:
    return kernels.swiglu(kernels.rms_norm(hidden_states, VECTOR), up)


def cross_entropy(hidden_states: Tensor, labels: Tensor, row_weight: Tensor) -> Tensor:
    return kernels.fused_linear_cross_entropy(hidden_states, TABLE, labels, bias=TABLE[:, 0], row_weight=row_weight)


def rows(count: int, *shape: int) -> Tensor:
    return torch.randn(count, *(shape or (WIDTH,)), generator=torch.Generator().manual_seed(count))


CASES: list[tuple[Callable[..., Tensor], Callable[[int], tuple[Tensor, ...]]]] = [
    (flow, lambda n: (rows(n), rows(n), torch.linspace(0, 1, n))),
    (norm_and_rotary, lambda n: (rows(n, 4, WIDTH), rows(n, 2, WIDTH), rows(n))),
    (modulation, lambda n: (rows(n), rows(n))),
    (block, lambda n: (rows(n), rows(n, 3 * WIDTH))),
    (diffusion, lambda n: (rows(n, 2 * WIDTH), rows(n), torch.arange(n))),
    (packing, lambda n: (torch.arange(n), rows(n + 1), rows(n + 2), torch.tensor([0, n, n + 2]), rows(2))),
    (norm_and_gate, lambda n: (rows(n), rows(n))),
    (cross_entropy, lambda n: (rows(n), torch.arange(n), torch.linspace(0, 1, n))),
]


@pytest.mark.parametrize(("step", "inputs"), CASES, ids=[step.__name__ for step, _ in CASES])
def test_two_graphs_for_all_sizes(step, inputs) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for count in (7, 9, 12, 15):
        tensors = inputs(count)
        trained = next(x for x in tensors if x.is_floating_point()).requires_grad_()
        results = [run(*tensors) for run in (compiled, step)]
        gradients = [torch.autograd.grad(result.sum(), trained)[0] for result in results]
        assert torch.equal(*results) and torch.equal(*gradients)
    assert counter.frame_count == 2  # of the first size, and of any
