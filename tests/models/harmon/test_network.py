"""Parts of the network that the parity cases do not tell apart."""

import pytest
import torch

from reca_fast.models.harmon.denoiser import Denoiser
from reca_fast.models.harmon.network import ScaleGradient


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(4, 6, 16, 2).double()


def run(denoiser: Denoiser, x_t, timesteps, z) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The prediction and the gradients of a random sum of it."""
    out = denoiser(x_t, timesteps, z)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    return out, list(torch.autograd.grad((out * weights).sum(), list(denoiser.parameters())))


def test_many_rows_share_the_embeddings_of_their_timesteps(denoiser) -> None:
    """Above 1000 rows each timestep is embedded once. It changes no number but by rounding."""
    z, timesteps = torch.randn(600, 6).double(), torch.randint(1000, (1200,))
    x_t = torch.randn(1200, 4).double()
    together, gradients = run(denoiser, x_t, timesteps, z)
    parts = [slice(0, 600), slice(600, 1200)]
    apart = torch.cat([denoiser(x_t[part], timesteps[part], z) for part in parts])
    torch.testing.assert_close(together, apart)
    weights = torch.randn(apart.shape, generator=torch.Generator().manual_seed(1), dtype=apart.dtype)
    wanted = torch.autograd.grad((apart * weights).sum(), list(denoiser.parameters()))
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_timestep_serves_all_rows(denoiser) -> None:
    z, x_t = torch.randn(5, 6).double(), torch.randn(10, 4).double()
    every = denoiser(x_t, torch.full((10,), 7), z)
    torch.testing.assert_close(denoiser(x_t, torch.tensor([7]), z), every)


def test_a_lever_inside_a_block_is_not_bypassed(denoiser) -> None:
    """The fused block reads the weights themselves; where a lever has put another computation in a layer's place, the
    layer is called.
    """
    x_t, timesteps, z = torch.randn(4, 4).double(), torch.tensor([1, 2, 3, 4]), torch.randn(4, 6).double()
    plain, calls = denoiser(x_t, timesteps, z), []
    layer = denoiser.res_blocks[0].mlp[0]
    forward = layer.forward

    def noted(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return forward(x)

    layer.forward = noted
    torch.testing.assert_close(denoiser(x_t, timesteps, z), plain)
    assert calls


def test_without_rows_every_weight_has_a_gradient_of_zero(denoiser) -> None:
    out, gradients = run(
        denoiser, torch.zeros(0, 4).double(), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 6).double()
    )
    assert out.shape == (0, 8) and not any(gradient.any() for gradient in gradients)


def test_the_gradient_of_the_first_rows_is_scaled() -> None:
    x = torch.randn(5, 3, requires_grad=True)
    out = ScaleGradient.apply(x, 2, 0.1)
    assert torch.equal(out, x) and out is not x
    out.backward(torch.ones(5, 3))
    assert (
        x.grad is not None
        and torch.equal(x.grad[:2], torch.full((2, 3), 0.1))
        and torch.equal(x.grad[2:], torch.ones(3, 3))
    )
