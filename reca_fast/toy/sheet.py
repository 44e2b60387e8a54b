"""A sheet of a pool's pictures with their captions: `python -m reca_fast.toy.sheet POOL FILE.png`."""

import sys
from pathlib import Path
from textwrap import fill

from .captions import captions_of
from .world import render, scene_of

ROWS, COLUMNS = 4, 6


def draw_sheet(pool: str, path: Path) -> None:
    """Write the first pictures of a pool as one PNG, each with its sparse caption above its dense one.

    Raises:
        UserError: there is no such pool.
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.9 * COLUMNS, 2.05 * ROWS), layout="constrained")
    for index, axes in enumerate(figure.subplots(ROWS, COLUMNS).flat):
        scene = scene_of(pool, index)
        captions = captions_of(scene, pool, index)
        axes.imshow(render(scene, pool, index), interpolation="nearest")
        axes.set_title(captions["sparse"], fontsize=8, fontweight="bold", pad=3)
        axes.set_xlabel(fill(captions["dense"], 22), fontsize=7.5, labelpad=2)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(path, dpi=72)


if __name__ == "__main__":
    draw_sheet(sys.argv[1], Path(sys.argv[2]))
