"""Sheets of pictures: every picture whole, where it belongs, on white."""

import numpy as np
import torch
from PIL import Image

from reca_fast.evaluation.grids import draw_comparison, draw_grid
from reca_fast.evaluation.reconstruction import Reconstruction


def plain(height: int, width: int, level: int) -> torch.Tensor:
    return torch.full((height, width, 3), level, dtype=torch.uint8)


def test_columns_are_as_wide_as_their_widest_picture(tmp_path) -> None:
    draw_grid([[plain(4, 6, 10), plain(8, 2, 20)], [plain(3, 3, 30), plain(3, 5, 40)]], tmp_path / "sheet.png", gap=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))[:, :, 0]
    assert sheet.shape == (2 + 8 + 2 + 3 + 2, 2 + 6 + 2 + 5 + 2)
    assert (sheet[2:6, 2:8] == 10).all() and (sheet[2:10, 10:12] == 20).all()
    assert (sheet[12:15, 2:5] == 30).all() and (sheet[12:15, 10:15] == 40).all()
    assert (sheet == 255).sum() == sheet.size - 4 * 6 - 8 * 2 - 3 * 3 - 3 * 5


def test_originals_stand_above_what_was_drawn_of_them(tmp_path) -> None:
    done = [Reconstruction(str(n), plain(4, 4, 10 + n), plain(4, 4, 20 + n)) for n in range(3)]
    draw_comparison(done, tmp_path / "samples" / "sheet.odd")
    sheet = np.asarray(Image.open(tmp_path / "samples" / "sheet.odd"))[:, :, 0]
    assert [sheet[6, 6 + 8 * n] for n in range(3)] == [10, 11, 12]
    assert [sheet[14, 6 + 8 * n] for n in range(3)] == [20, 21, 22]
