"""Masked decoding against a plain loop, what stays as it is, and draws that follow their probabilities."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reca_fast.models.showo.sampling import (
    MASKED,
    RecordedDraws,
    SeededDraws,
    ShowoSampling,
    decoding_steps,
    draw_codes,
    guided,
)

PLACES, CODES = 24, 16


def model(codes: Tensor) -> Tensor:
    """Logits [..., N, K] that depend on what has been drawn."""
    base = torch.randn(PLACES, CODES, generator=torch.Generator().manual_seed(5))
    drawn = torch.where(codes == MASKED, 0, codes).sum(-1)[..., None, None]
    return 2 * base + 0.1 * drawn * torch.linspace(-1, 1, CODES)


def plain(start: list[int], raw: Tensor, uniform: Tensor, steps: int) -> list[list[int]]:
    """The same by lists and sorting; the codes after every step."""
    codes, temperature, out = list(start), 1.0, []
    for k in range(1, steps + 1):
        temperature *= 1 - k / steps
        chances = torch.softmax(model(torch.tensor(codes)), -1)
        filled = [int(raw[k - 1, j]) if code == MASKED else code for j, code in enumerate(codes)]
        noise = [-math.log(-math.log(float(u))) for u in uniform[k - 1]]
        confidence = [
            (math.log(float(chances[j, filled[j]])) if code == MASKED else math.log(3.4028235e38))
            + temperature * noise[j]
            for j, code in enumerate(codes)
        ]
        unknown = codes.count(MASKED)
        count = max(1, min(unknown - 1, math.floor(len(codes) * float(torch.tensor(k / steps).mul(math.pi / 2).cos()))))
        least = sorted(range(len(codes)), key=confidence.__getitem__)[:count]
        out.append(filled)
        codes = [MASKED if j in least else code for j, code in enumerate(filled)]
    return out


@pytest.mark.parametrize("known", [0, 9, PLACES - 1])
@pytest.mark.parametrize("steps", [1, 5, 12])
def test_it_decodes_as_a_plain_loop_does(steps, known) -> None:
    draw = torch.Generator().manual_seed(1)
    raw = torch.randint(CODES, (steps, PLACES), generator=draw)
    uniform = torch.rand(steps, PLACES, generator=draw)
    start = torch.full((PLACES,), MASKED)
    start[torch.randperm(PLACES, generator=draw)[:known]] = 3
    found = list(decoding_steps(model, start, steps, 1.0, RecordedDraws(raw, uniform)))
    assert [step.codes.tolist() for step in found] == plain(start.tolist(), raw, uniform, steps)
    assert all(torch.equal(step.codes[start == 3], start[start == 3]) for step in found)  # known places stay


def test_ever_fewer_places_are_masked_again() -> None:
    steps = list(decoding_steps(model, torch.full((1, PLACES), MASKED), 8, 1.0, SeededDraws([0])))
    counts = [int(step.masked.sum()) for step in steps]
    assert counts == [int(step.to_mask) for step in steps] == sorted(counts, reverse=True)
    assert counts[0] == math.floor(PLACES * math.cos(math.pi / 16)) and counts[-1] == 1


def test_the_cosine_is_one_of_fp32() -> None:
    steps = decoding_steps(
        lambda codes: torch.zeros(1, 16, CODES), torch.full((1, 16), MASKED), 3, 1.0, SeededDraws([0])
    )
    assert [int(step.to_mask) for step in steps] == [13, 7, 1]  # cos(pi/3) is less than 0.5 in fp32


def test_a_single_place_is_drawn() -> None:
    (step,) = decoding_steps(
        lambda codes: torch.zeros(1, 1, CODES), torch.full((1, 1), MASKED), 1, 1.0, SeededDraws([0])
    )
    assert 0 <= int(step.codes) < CODES


def test_the_seed_alone_decides() -> None:
    start, sampling = torch.full((PLACES,), MASKED), ShowoSampling(steps=6)
    first, again, other = (draw_codes(model, start[None], sampling, [seed]) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_pictures_that_are_drawn_together_are_drawn_each_by_itself() -> None:
    start, sampling = torch.full((3, PLACES), MASKED), ShowoSampling(steps=6)
    start[1, :9] = 3  # fewer to draw, so others are masked again
    together = draw_codes(model, start, sampling, [1, 2, 1])
    alone = [draw_codes(model, each[None], sampling, [seed]) for each, seed in zip(start, (1, 2, 1), strict=True)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together[0], together[2]) and not torch.equal(together[0], together[1])


class Deterministic(TorchDispatchMode):
    """Refuses what the option `deterministic` makes torch refuse on a GPU: running sums of fractions."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten.cumsum.default or not args[0].is_floating_point()
        return func(*args, **(kwargs or {}))


def test_codes_are_drawn_with_their_probabilities() -> None:
    chances = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0])
    with Deterministic():
        (drawn,) = SeededDraws([0]).codes(chances.expand(1, 20_000, -1))
    shares = drawn.bincount(minlength=5) / len(drawn)
    assert torch.equal(shares == 0, chances == 0)
    torch.testing.assert_close(shares, chances, atol=0.01, rtol=0)


def test_guidance_of_one_is_off() -> None:
    conditional, unconditional = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(guided(conditional, unconditional, 1.0), conditional)
    expected = 2.5 * conditional - 1.5 * unconditional  # the authors' scale of 1.5
    torch.testing.assert_close(guided(conditional, unconditional, 2.5), expected)
