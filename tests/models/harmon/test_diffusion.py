"""Which diffusion steps sampling keeps, and the numbers that follow from them."""

import math

import pytest

from reca_fast.errors import UserError
from reca_fast.kernels.mar_diffusion_loss.contract import schedule as table
from reca_fast.models.harmon.diffusion import kept_steps, schedule
from reca_fast.models.harmon.sampling import HarmonSampling, _guidance, hidden_after


def test_steps_are_kept_as_their_string_says() -> None:
    hundred = kept_steps("100")
    assert len(hundred) == 100 and hundred[:7] == [0, 10, 20, 30, 40, 50, 61] and hundred[-3:] == [979, 989, 999]
    assert hundred == [round(i * 999 / 99) for i in range(100)]
    assert kept_steps("8,0") == [0, 71, 143, 214, 285, 356, 428, 499]
    assert kept_steps("6,2,0") == [0, 67, 133, 200, 266, 333, 334, 666]
    assert kept_steps("1,1,1") == [0, 334, 667]
    assert kept_steps("ddim50") == list(range(0, 1000, 20))
    assert kept_steps("1000") == list(range(1000))


@pytest.mark.parametrize("kept", ["", "a", "10,-1", "1001", "0", "600,600", "ddim7.5", "ddim999"])
def test_impossible_counts_are_refused_by_name(kept) -> None:
    with pytest.raises(UserError, match=r"mar\.num_sampling_steps is"):
        kept_steps(kept)


def test_all_steps_give_the_schedule_of_training() -> None:
    """One is computed in the kernels for the loss, the other one here for sampling."""
    import torch

    rows = table(torch.device("cpu"), torch.float64)
    steps = schedule(kept_steps("1000"))
    least, most, distance = rows[:, 4], rows[:, 6], rows[:, 5]
    for i in (0, 1, 250, 500, 750, 998, 999):
        assert steps[i].number == i
        assert steps[i].least == pytest.approx(least[i].item(), rel=1e-9)
        assert steps[i].most == pytest.approx(most[i].item(), rel=1e-9)
        assert steps[i].from_noise == pytest.approx(distance[i].item(), rel=1e-9)


def test_betas_of_a_hundred_kept_steps() -> None:
    betas = [math.exp(step.most) for step in schedule(kept_steps("100"))]
    assert [betas[0], betas[50], betas[99]] == pytest.approx([4.1284e-5, 0.0341717, 0.99999], rel=1e-4)


@pytest.mark.parametrize(
    ("total", "steps", "drawn"), [(16, 4, [2, 3, 5, 6]), (24, 3, [4, 8, 12]), (3, 5, [1, 1, 0, 0, 1])]
)
def test_tokens_drawn_in_each_step(total, steps, drawn) -> None:
    hidden, counts = total, []
    for number in range(steps):
        keep = hidden_after(number, steps, total, hidden)
        counts.append(hidden - keep)
        hidden = keep
    assert counts == drawn and hidden == 0


def test_tokens_drawn_at_the_published_size() -> None:
    hidden, counts = 1024, []
    for number in range(64):
        keep = hidden_after(number, 64, 1024, hidden)
        counts.append(hidden - keep)
        hidden = keep
    assert counts[:8] == [1, 1, 1, 2, 3, 4, 4, 4] and counts[31] == 17 and counts[-1] == 25 and sum(counts) == 1024


def test_linear_guidance_grows_with_what_is_drawn() -> None:
    linear = HarmonSampling(guidance=3.0, guidance_schedule="linear")
    assert [_guidance(linear, keep, 100) for keep in (100, 50, 1)] == [1.0, 2.0, 2.98]
    assert _guidance(linear, 0, 100) == 2.98, "the last step is guided as if one token stayed hidden, as the authors do"
    assert _guidance(HarmonSampling(), 100, 100) == 3.0
