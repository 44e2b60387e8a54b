"""Sample grids: what a few fixed pictures become when they go through the condition path and back."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from reca_fast.config import RunConfig
from reca_fast.data.records import BadRecord
from reca_fast.data.samples import SampleBuilder
from reca_fast.data.sources import Source
from reca_fast.data.tally import Reasons
from reca_fast.evaluation.reconstruction import reconstruct_all
from reca_fast.models import Adapter
from reca_fast.sample import RECA, Sample


def pick_samples(
    source: Source, builder: SampleBuilder, count: int, passed_over: Reasons | None = None
) -> list[Sample]:
    """The first `count` readable pictures of a source as reca samples, whatever tasks are trained; unreadable ones on
    the way are added to `passed_over`.
    """
    samples: list[Sample] = []
    for index in range(len(source)):
        if len(samples) >= count:
            break
        try:
            record = source.read(index)
            size = builder.picture_size(record.image)
            plan = builder.plan(index, record.key, size, None, epoch=0, task=RECA)
            samples.append(builder.build(record, plan))
        except BadRecord as bad:
            if passed_over is not None:
                passed_over.add(bad.reason, source.key(index))
    return samples


def draw_grid(rows: Sequence[Sequence[Tensor]], path: Path, gap: int = 4) -> None:
    """Write rows of pictures (uint8 [H, W, 3], any sizes) as one PNG; a column is as wide as its widest picture."""
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


class GridWriter:
    """Reconstructs the same pictures every time. All processes call `write`, the main one saves the file."""

    def __init__(self, adapter: Adapter, config: RunConfig, samples: Sequence[Sample], is_main: bool) -> None:
        self.adapter, self.config, self.samples, self.is_main = adapter, config, samples, is_main

    def write(self, step: int) -> None:
        """Originals above, reconstructions below, to `samples/step-0000100.png` in the run folder."""
        if not self.samples:
            return
        done = reconstruct_all(self.adapter, self.samples, self.config.sampling)
        if self.is_main:
            rows = [[r.original for r in done], [r.drawn for r in done]]
            draw_grid(rows, Path(self.config.out) / "samples" / f"step-{step:07d}.png")
