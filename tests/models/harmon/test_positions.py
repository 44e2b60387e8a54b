"""Position tables at other grids, against torch's bilinear interpolation."""

import pytest
import torch
import torch.nn.functional as F

from reca_fast.models.harmon.positions import resampled


@pytest.mark.parametrize("grid", [(32, 32), (6, 4), (3, 9), (1, 1), (16, 5), (40, 16)])
def test_it_is_bilinear_without_aligned_corners(grid) -> None:
    table = torch.randn(256, 3, dtype=torch.float64, requires_grad=True)
    picture = table.T.view(1, 3, 16, 16)
    wanted = F.interpolate(picture, size=grid, mode="bilinear", align_corners=False, antialias=False)
    got = resampled(table, grid)
    torch.testing.assert_close(got, wanted[0].flatten(1).T)
    weights = torch.randn_like(got)
    (ours,) = torch.autograd.grad((got * weights).sum(), table, retain_graph=True)
    (theirs,) = torch.autograd.grad((wanted[0].flatten(1).T * weights).sum(), table)
    torch.testing.assert_close(ours, theirs)


def test_its_own_grid_is_the_table_itself() -> None:
    table = torch.randn(16, 2)
    assert resampled(table, (4, 4)) is table
