"""A pool of the toy world as a source: `data.source: toy:base`. Nothing is on disk; each picture is drawn when read."""

import io

from PIL import Image

from reca_fast import toy
from reca_fast.data.captions import captions_in_cell
from reca_fast.data.reasons import Reasons
from reca_fast.data.records import Record, record

PREFIX = "toy:"
"""Begins the name of a pool, where a path could stand as well."""


class ToySource:
    """The pictures of one pool as PNG files, with their captions by name. Keys are like "base/000012".

    Args:
        pool: understanding, base, posttraining or validation.
        caption_name: sparse or dense; empty where each epoch draws one of the two.

    Raises:
        UserError: there is no such pool.
    """

    def __init__(self, pool: str, caption_name: str = "") -> None:
        self.ignored = Reasons()
        self._size, self._pool, self._name = toy.pool_named(pool).size, pool, caption_name

    def __len__(self) -> int:
        return self._size

    def key(self, index: int) -> str:
        return f"{self._pool}/{index:06d}"

    def size(self, index: int) -> int:
        return 0

    def read(self, index: int) -> Record:
        scene = toy.scene_of(self._pool, index)
        file = io.BytesIO()
        Image.fromarray(toy.render(scene, self._pool, index)).save(file, "PNG", compress_level=1)
        captions = toy.captions_of(scene, self._pool, index)
        return record(self.key(index), file.getvalue(), captions_in_cell(captions, self._name))
