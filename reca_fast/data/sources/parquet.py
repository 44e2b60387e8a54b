"""Parquet files whose image column holds bytes or a struct with bytes (the layout of the Hugging Face hub)."""

import bisect
import itertools
import os
import threading
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from reca_fast.config import DataConfig
from reca_fast.data.images import BadRecord
from reca_fast.data.sources.base import Record, check_column, clean_caption
from reca_fast.errors import UserError


class ParquetSource:
    """Rows of parquet files; keys are "file.parquet/000000012" with the path relative to `base`.

    Parquet can only be read by whole row groups; the last one is kept, so `data.shuffle: false` reads each group once
    while a shuffled order reads one group a picture. Small row groups (some 10 MB) keep that bearable.
    """

    def __init__(self, base: str, files: Sequence[str], config: DataConfig) -> None:
        self._image, self._caption = config.image_column, config.caption_column
        needs_caption = config.tasks.t2i > 0 or config.tasks.i2t > 0
        self._files = list(files)
        self._names = [os.path.relpath(file, base).replace(os.sep, "/") for file in files]
        self._columns: list[list[str]] = []
        self._groups: list[tuple[int, int, int]] = []  # (file, row group, its first row in the file)
        rows = []
        for number, file in enumerate(self._files):
            try:
                metadata = pq.read_metadata(file)
                schema = metadata.schema.to_arrow_schema()
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{file} is not a readable parquet file ({error}); remove or replace it.") from error
            check_column("data.image_column", self._image, schema.names, file)
            if needs_caption:
                check_column("data.caption_column", self._caption, schema.names, file)
            _check_picture_type(self._image, schema.field(self._image).type, file)
            self._columns.append([name for name in (self._image, self._caption) if name in schema.names])
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            starts = itertools.accumulate(sizes, initial=0)
            self._groups += [(number, group, start) for group, start in zip(range(len(sizes)), starts, strict=False)]
            rows += sizes
        self._ends = list(itertools.accumulate(rows))
        if not len(self):
            raise UserError(f"data.source: the parquet files hold no rows; the first is {self._files[0]}.")
        self._lock = threading.Lock()
        self._kept: tuple[int, pa.Table] | None = None  # the last row group that was read

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def key(self, index: int) -> str:
        group, row = self._find(index)
        file, _, first = self._groups[group]
        return f"{self._names[file]}/{first + row:09d}"

    def size(self, index: int) -> int:
        return os.path.getsize(self._files[self._groups[self._find(index)[0]][0]])

    def read(self, index: int) -> Record:
        group, row = self._find(index)
        try:
            table = self._read_group(group)
        except (OSError, pa.ArrowException) as error:
            raise BadRecord("unreadable parquet row group", str(error)) from error
        image = table.column(self._image)[row].as_py()
        if isinstance(image, dict):
            image = image["bytes"]
        if not image:
            raise BadRecord("row without picture bytes")
        caption = table.column(self._caption)[row].as_py() if self._caption in table.column_names else None
        return Record(self.key(index), image, clean_caption(caption))

    def _find(self, index: int) -> tuple[int, int]:
        """(row group counted over all files, row inside it)."""
        group = bisect.bisect_right(self._ends, index)
        return group, index - (self._ends[group - 1] if group else 0)

    def _read_group(self, group: int) -> pa.Table:
        with self._lock:
            if self._kept is None or self._kept[0] != group:
                file, number, _ = self._groups[group]
                with pq.ParquetFile(self._files[file]) as parquet:
                    self._kept = group, parquet.read_row_group(number, columns=self._columns[file])
            return self._kept[1]


def _check_picture_type(column: str, kind: pa.DataType, file: str) -> None:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(
            f"{file}: column {column!r} holds {kind}, not pictures (bytes, or a struct with bytes); "
            "set data.image_column."
        )
