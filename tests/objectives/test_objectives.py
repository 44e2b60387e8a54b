"""Objectives are sums over tokens, by task; divided by global counts they do not depend on how a batch was cut."""

import math

import pytest
import torch

from reca_fast.config import LossWeights
from reca_fast.kernels import flow_interpolate
from reca_fast.objectives import flow_loss_by_task, next_token_loss, shifted_logit_normal, weighted_loss

pytestmark = pytest.mark.usefixtures("one_thread")


def flow_inputs(pictures: int, tokens: int = 5, channels: int = 6):
    """velocity, latents, timesteps, noise, target_index: `tokens` latent tokens per picture."""
    draw = torch.Generator().manual_seed(0)
    velocity, latents, noise = (torch.randn(pictures * tokens, channels, generator=draw) for _ in range(3))
    index = torch.arange(pictures).repeat_interleave(tokens)
    return velocity, latents, torch.rand(pictures, generator=draw), noise, index


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_timesteps_are_drawn_and_shifted_towards_noise(shift) -> None:
    """sigmoid of the draw, shifted towards noise; a shift of 1 changes nothing."""
    got = shifted_logit_normal(torch.tensor([-2.0, 0.0, 1.0]), shift)
    sigmoid = [1 / (1 + math.exp(-n)) for n in (-2.0, 0.0, 1.0)]
    torch.testing.assert_close(got, torch.tensor([shift * t / (1 + (shift - 1) * t) for t in sigmoid]))


def test_flow_loss_goes_to_the_task_of_each_picture() -> None:
    velocity, latents, timesteps, noise, index = flow_inputs(3)
    rows = (velocity.double() - (noise - latents).double()).square().mean(1).view(3, 5).sum(1).float()
    got = flow_loss_by_task(velocity, latents, timesteps, index, ["t2i", "reca", "t2i"], noise=noise)
    torch.testing.assert_close(got, {"t2i": rows[0] + rows[2], "reca": rows[1]})


@pytest.mark.parametrize("tasks", [["reca"] * 3, ["t2i", "reca", "t2i"]], ids=["one task", "two tasks"])
def test_flow_loss_with_the_seed_of_the_noise(tasks) -> None:
    """A seed stands for its noise, in the gradient too, whether or not the tasks share a pass."""
    velocity, latents, timesteps, _, index = flow_inputs(3)
    noise = flow_interpolate(latents, torch.ones(len(latents)), seed=7)
    leaf = velocity.requires_grad_()
    both = [flow_loss_by_task(leaf, latents, timesteps, index, tasks, **way) for way in ({"seed": 7}, {"noise": noise})]
    torch.testing.assert_close(*both)
    torch.testing.assert_close(*(torch.autograd.grad(sum(sums.values()), leaf) for sums in both))


def test_next_token_loss_is_the_negative_log_probability() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, head, labels = (
        torch.randn(4, 8, generator=draw),
        torch.randn(11, 8, generator=draw),
        torch.tensor([0, 10, 3, 3]),
    )
    probability = (hidden.double() @ head.double().T).softmax(-1)[torch.arange(4), labels]
    torch.testing.assert_close(next_token_loss(hidden, head, labels), -probability.log().float())
    assert next_token_loss(hidden.bfloat16(), head.bfloat16(), labels).dtype is torch.float32


@pytest.mark.parametrize("cuts", [[3], [1, 2], [1, 1, 1]], ids=str)
def test_loss_and_gradient_do_not_depend_on_the_cut(cuts) -> None:
    """Packs of a step add up to the mean over all tokens of each task, weighted by its lambda."""
    velocity, latents, timesteps, noise, index = flow_inputs(3)
    tasks, weights = ["reca", "t2i", "reca"], LossWeights(reca=1.0, t2i=0.25)
    counts = {"reca": 10, "t2i": 5, "i2t": 0}
    leaf = velocity.requires_grad_()
    total, start = torch.zeros(()), 0
    for pictures in cuts:
        here = slice(start, start + pictures)
        rows = slice(start * 5, (start + pictures) * 5)
        sums = flow_loss_by_task(
            leaf[rows], latents[rows], timesteps[here], index[rows] - start, tasks[here], noise=noise[rows]
        )
        total = total + weighted_loss(sums, counts, weights)
        start += pictures

    per_picture = (velocity - (noise - latents)).square().mean(1).view(3, 5).mean(1)
    want = (per_picture[0] + per_picture[2]) / 2 + 0.25 * per_picture[1]
    torch.testing.assert_close(total, want)
    torch.testing.assert_close(torch.autograd.grad(total, leaf), torch.autograd.grad(want, leaf))


def test_a_task_without_tokens_costs_nothing_and_stays_in_the_graph() -> None:
    leaf = torch.ones((), requires_grad=True)
    loss = weighted_loss({"reca": leaf * 6, "i2t": leaf * 0}, {"reca": 3, "t2i": 0, "i2t": 0}, LossWeights(i2t=0.1))
    assert loss.item() == 2.0
    assert torch.autograd.grad(loss, leaf)[0].item() == 2.0
