"""Each operation under what users wrap around it: torch.compile, activation checkpointing, a second backward pass."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.checkpoint import checkpoint

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


def every_loss(hidden_states: Tensor, labels: Tensor, row_weight: Tensor) -> Tensor:
    return kernels.fused_linear_cross_entropy(hidden_states, TABLE, labels, row_weight=row_weight, reduction="none")


def every_error(prediction: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
    losses = kernels.flow_matching_loss(prediction, latents, timesteps, noise=latents, reduction="none")
    wide = torch.cat((prediction, prediction), dim=1)
    return losses + kernels.mar_diffusion_loss(wide, latents, timesteps.long(), noise=latents, reduction="none")


def attention(q: Tensor, k: Tensor) -> Tensor:
    ends = torch.tensor([0, 3, len(q)], dtype=torch.int32)
    return kernels.varlen_attention(q, k, k, kernels.Varlen(ends, ends, 15, 15, True))


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
    (every_loss, lambda n: (rows(n), torch.arange(n), torch.linspace(0, 1, n))),
    (every_error, lambda n: (rows(n), rows(n), torch.linspace(0, 1, n))),
    (attention, lambda n: (rows(n, 4, WIDTH), rows(n, 2, WIDTH))),
]


STEPS = pytest.mark.parametrize(("step", "inputs"), CASES, ids=[step.__name__ for step, _ in CASES])


@pytest.mark.slow
@STEPS
def test_compile_traces_it_whole_and_twice_at_most(step, inputs) -> None:
    """Once for the first number of rows and once for any."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for count in (7, 9, 12, 15):
        tensors = inputs(count)
        trained = next(x for x in tensors if x.is_floating_point()).requires_grad_()
        results = [run(*tensors) for run in (compiled, step)]
        both = [torch.autograd.grad(result.sum(), trained)[0] for result in results]
        assert torch.equal(*results) and torch.equal(*both)
    assert counter.frame_count == 2


@pytest.mark.parametrize(("step", "inputs"), CASES[:-1], ids=[step.__name__ for step, _ in CASES[:-1]])  # no attention
def test_shapes_on_the_meta_device(step, inputs, monkeypatch) -> None:
    """Where nothing is computed and autocast is unknown."""
    tensors = inputs(9)
    shape = step(*tensors).shape
    for name in ("TABLE", "SQUARE", "VECTOR"):
        monkeypatch.setitem(globals(), name, globals()[name].to("meta"))
    with torch.device("meta"):
        result = step(*(x.to("meta") for x in tensors))
    assert result.is_meta and result.shape == shape


@STEPS
def test_checkpointing_runs_the_forward_pass_once_more(step, inputs) -> None:
    """The forward pass runs again in the backward pass, and gives every saved tensor out once."""
    plain, again = (gradients(run, inputs(9)) for run in (step, partial(checkpoint, step, use_reentrant=False)))
    assert torch.equal(plain, again)


@STEPS
def test_two_backward_passes(step, inputs) -> None:
    """The second, with twice the upstream gradient, adds twice as much."""
    tensors = inputs(9)
    trained = next(x for x in tensors if x.is_floating_point()).requires_grad_()
    result = step(*tensors).sum()
    (once,) = torch.autograd.grad(result, trained, retain_graph=True)
    result.backward(retain_graph=True)
    result.backward(torch.tensor(2.0))
    torch.testing.assert_close(trained.grad, 3 * once)


def gradients(step: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> Tensor:
    trained = next(x for x in tensors if x.is_floating_point()).requires_grad_()
    return torch.autograd.grad(step(*tensors).sum(), trained)[0]


def test_sharded_weights_are_refused_by_name(tmp_path) -> None:
    """An FSDP2 weight outside its module's forward pass, where torch would only say that tensors are mixed."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        sharded = distribute_tensor(TABLE, init_device_mesh("cpu", (1,)), [Shard(0)])
        with pytest.raises(ValueError, match=r"^weight: expected a plain tensor, got a DTensor; .*weight.full_tensor"):
            kernels.fused_linear_cross_entropy(rows(5), sharded, torch.arange(5))
    finally:
        torch.distributed.destroy_process_group()
