"""Sheets of pictures: originals above, their reconstructions below; and those that training draws of its progress."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from reca_fast.config import RunConfig
from reca_fast.evaluation.reconstruction import Reconstruction, reconstruct
from reca_fast.models import Model
from reca_fast.sample import Sample


def draw_grid(rows: Sequence[Sequence[Tensor]], path: Path, gap: int = 4) -> None:
    """Write rows of pictures (uint8 [H, W, 3], any sizes) as one PNG on white.

    A column is as wide as its widest picture, a row as high as its highest, with `gap` pixels between.
    """
    widths = [max(row[c].shape[1] for row in rows) for c in range(len(rows[0]))]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    sheet = torch.full((sum(heights) + gap * (len(rows) + 1), sum(widths) + gap * (len(widths) + 1), 3), 255).byte()
    top = gap
    for row, height in zip(rows, heights, strict=True):
        left = gap
        for picture, width in zip(row, widths, strict=True):
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
            left += width + gap
        top += height + gap
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.numpy()).save(path, format="PNG")


def draw_comparison(reconstructions: Sequence[Reconstruction], path: Path) -> None:
    """Write a PNG with the originals in the upper row and what was drawn of each below it."""
    draw_grid([[r.original for r in reconstructions], [r.drawn for r in reconstructions]], path)


class GridWriter:
    """Reconstructs the same samples again and again during training, so that its progress can be seen.

    The model may be shared by several processes: all of them call `write`, and the main one saves the file.

    Args:
        encoders_on: the device to which the frozen encoders are loaded for each grid, to be freed after it; None where
            they are there all the time.
    """

    def __init__(
        self,
        model: Model,
        config: RunConfig,
        samples: Sequence[Sample],
        is_main: bool,
        *,
        encoders_on: torch.device | None = None,
    ) -> None:
        self.model, self.config, self.samples, self.is_main = model, config, samples, is_main
        self.encoders_on = encoders_on

    def write(self, step: int) -> Sequence[Reconstruction]:
        """Draw the comparison after `step` steps to `samples/step-0000100.png` in the run folder; what is on it."""
        if not self.samples:
            return []
        if self.encoders_on is not None:
            self.model.fill_encoders(self.encoders_on)
        done = reconstruct(self.model, self.samples, self.config.sampling)
        if self.encoders_on is not None:
            self.model.drop_encoders()
        if self.is_main:
            draw_comparison(done, Path(self.config.out) / "samples" / f"step-{step:07d}.png")
        return done
