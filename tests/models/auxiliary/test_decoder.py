"""The decoder: its size, its grids, and that it begins the same in every run, with nothing to say."""

import pytest
import torch

from reca_fast.models.auxiliary.decoder import (
    FreshDecoder,
    ReconstructionDecoder,
    fitted_width,
    needed_stages,
    parameters,
    resampling,
)
from reca_fast.models.files import fill, uniform


def decoder(width: int = 32, stages: int = 2, channels: int = 3) -> ReconstructionDecoder:
    with torch.device("meta"):
        made = ReconstructionDecoder(24, width, stages, channels)
    fill(made, FreshDecoder(made), uniform(torch.float32, "cpu"))
    return made


@pytest.mark.parametrize("millions", [10, 30, 50, 100])
@pytest.mark.parametrize(("hidden_size", "stages", "channels"), [(4096, 1, 4), (2048, 2, 16), (896, 5, 3)])
def test_it_is_as_wide_as_its_size_allows(millions, hidden_size, stages, channels) -> None:
    width = fitted_width(millions, hidden_size, stages, channels)
    with torch.device("meta"):
        made = ReconstructionDecoder(hidden_size, width, stages, channels)
    numbers = sum(p.numel() for p in made.parameters())
    assert numbers == parameters(hidden_size, width, stages, channels)
    assert 0.96 * millions * 1e6 < numbers <= millions * 1e6


def test_it_doubles_the_grid_until_it_has_the_resolution_of_the_target() -> None:
    assert [needed_stages(*sides) for sides in ((14, 8), (28, 8), (28, 4), (14, 1), (28, 1), (8, 8))] == [
        1,
        2,
        3,
        4,
        5,
        1,
    ]


@pytest.mark.parametrize("size", [(8, 12), (7, 13), (3, 2), (20, 30)])
def test_it_draws_any_size_from_any_grid_each_picture_for_itself(size) -> None:
    made = decoder()
    torch.nn.init.normal_(made.out.weight, generator=torch.Generator().manual_seed(1))
    rows = torch.randn(2 * 6, 24, generator=torch.Generator().manual_seed(2))
    both = made(rows, (2, 3), size)
    assert both.shape == (2, 3, *size)
    torch.testing.assert_close(both[1], made(rows[6:], (2, 3), size)[0])


def test_without_pictures_every_weight_still_has_a_gradient_of_zero() -> None:
    made = decoder()
    made(torch.zeros(0, 24), (1, 1), (1, 1)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in made.parameters())


def test_a_new_one_says_zero_and_is_the_same_in_every_run_and_in_parts() -> None:
    one, two = decoder(), decoder()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not one(torch.randn(4, 24), (2, 2), (8, 8)).any()
    fresh = FreshDecoder(one)
    part = fresh.tensor("project.weight", (slice(8, 16), slice(0, 5)))
    assert torch.equal(part, one.project.weight[8:16, :5])


def test_a_new_one_keeps_the_scale_of_what_comes_in() -> None:
    """Neither vanishing nor exploding before the last convolution, whose weights are zeros."""
    made, seen = decoder(width=256, stages=2), []
    made.out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    made(torch.randn(64, 24), (8, 8), (32, 32))
    assert 0.3 < seen[0].std() < 1.5


@pytest.mark.parametrize(("cells", "wanted"), [(4, 8), (8, 5), (6, 6), (3, 7)])
def test_resampling_is_torch_s_antialiased_linear_interpolation(cells, wanted) -> None:
    x = torch.randn(1, 2, cells, 2)
    expected = torch.nn.functional.interpolate(x, (wanted, 2), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(resampling(cells, wanted, x) @ x, expected)


def test_its_arithmetic_is_counted() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    made = decoder()
    with FlopCounterMode(display=False) as counter:
        made(torch.randn(12, 24), (3, 4), (12, 16))
    assert made.flops((3, 4), (12, 16)) == pytest.approx(counter.get_total_flops())
