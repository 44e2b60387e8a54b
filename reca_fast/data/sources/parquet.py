"""Parquet files. A cell of the image column holds bytes, a path, or a struct of the two as on the Hugging Face hub."""

import bisect
import itertools
import os
import re
import threading
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from reca_fast.config import DataConfig
from reca_fast.data.captions import captions_in_cell
from reca_fast.data.reasons import Reasons
from reca_fast.data.records import BadRecord, Record, record
from reca_fast.data.sources.base import check_column
from reca_fast.data.sources.folder import read_picture
from reca_fast.errors import UserError

DAMAGED = (OSError, ValueError, pa.ArrowException)  # what pyarrow raises on damaged files

MAX_GROUP = 2**33
"""A row group that takes more bytes in memory is not read. One is kept: that of the last picture."""
AT_ONCE = 2**30
"""Bytes that are read from a row group at once, even if every row held all that the group stores."""
PATHS = 1000
"""Where the column holds text, one of so many cells must be the path of a file."""


class ParquetSource:
    """The rows of parquet files. Keys are the path of the file from `base` and the row: "file.parquet/000000012".

    Parquet can only be read by whole row groups, of which the last is kept. With `data.shuffle` false each group is
    read once; in a shuffled order a group is read for each picture, which small groups of some 10 MB keep bearable.

    Args:
        base: absolute path of the folder that all files are below.
        files: absolute paths.
        config: names the columns.
        ignored: takes the files that are damaged.

    Raises:
        UserError: a file lacks the columns, or there are no rows.
    """

    def __init__(self, base: str, files: Sequence[str], config: DataConfig, ignored: Reasons) -> None:
        self._image, self._caption, self.ignored = config.image_column, config.caption_column, ignored
        self._name = config.caption_name
        self._files: list[str] = []
        self._names: list[str] = []
        self._columns: list[list[str]] = []
        self._groups: list[tuple[int, int, int]] = []  # (file, row group, its first row in the file)
        rows: list[int] = []
        for file in files:
            name = os.path.relpath(file, base).replace(os.sep, "/")
            try:
                metadata = pq.read_metadata(file)
                schema = metadata.schema.to_arrow_schema()
                sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
                self._check_columns(schema, file, config)
            except DAMAGED:
                ignored.add("damaged parquet file", name)
                continue
            self._columns.append([column for column in (self._image, self._caption) if column in schema.names])
            starts = itertools.accumulate(sizes, initial=0)
            number = len(self._files)
            self._groups += [(number, group, start) for group, start in zip(range(len(sizes)), starts, strict=False)]
            self._files.append(file)
            self._names.append(name)
            rows += sizes
        self._ends = list(itertools.accumulate(rows))
        if not len(self):
            raise UserError(
                f"data.source: no rows in the parquet files, the first is {files[0]}; ignored: {ignored or 'nothing'}."
            )
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
            cells = {column: table.column(column)[row].as_py() for column in table.column_names}
        except DAMAGED as error:
            raise BadRecord("unreadable parquet row group", str(error)) from error
        file = self._files[self._groups[group][0]]
        image = _picture(cells[self._image], os.path.dirname(file))
        return record(self.key(index), image, captions_in_cell(cells.get(self._caption), self._name))

    def _check_columns(self, schema: pa.Schema, file: str, config: DataConfig) -> None:
        if self._files and self._image not in schema.names:
            raise UserError(
                f"{file} has no column {self._image!r}, unlike {self._files[0]}; it has "
                f"{', '.join(map(repr, schema.names))}. Name files of one kind by a glob."
            )
        for column in (self._image, self._caption):
            if schema.names.count(column) > 1:
                raise UserError(f"{file} has several columns {column!r}; rename all but one of them.")
        check_column("data.image_column", self._image, schema.names, file)
        if config.needs_captions:
            check_column("data.caption_column", self._caption, schema.names, file)
        kind = _kind_of_cell(schema.field(self._image).type)
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        if is_text:
            _check_paths(self._image, file)
        elif not (_is_bytes(kind) or (pa.types.is_struct(kind) and {"bytes", "path"} & {f.name for f in kind})):
            raise UserError(
                f"{file}: column {self._image!r} holds {kind}, not pictures (bytes, or a struct with bytes); "
                "set data.image_column."
            )

    def _find(self, index: int) -> tuple[int, int]:
        """(row group counted over all files, row inside it)."""
        group = bisect.bisect_right(self._ends, index)
        return group, index - (self._ends[group - 1] if group else 0)

    def _read_group(self, group: int) -> pa.Table:
        with self._lock:
            if self._kept is None or self._kept[0] != group:
                file, number, _ = self._groups[group]
                with pq.ParquetFile(self._files[file], page_checksum_verification=True) as parquet:
                    self._kept = group, _bounded(parquet, number, self._columns[file])
            return self._kept[1]


def _bounded(parquet: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
    """Some columns of a row group, read piece by piece: a file of 500 bytes can stand for a million rows of 1 MB.

    Raises:
        BadRecord: the group takes more than MAX_GROUP bytes.
    """
    metadata = parquet.metadata.row_group(group)
    parts = [metadata.column(i) for i in range(metadata.num_columns)]
    stored = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in columns)
    if stored > MAX_GROUP:
        raise BadRecord("parquet row group too large", f"{stored} bytes")
    batches, size = [], 0
    for batch in parquet.iter_batches(max(1, AT_ONCE // max(1, stored)), row_groups=[group], columns=columns):
        batches.append(batch)
        size += batch.nbytes
        if size > MAX_GROUP:
            raise BadRecord("parquet row group too large", f"more than {MAX_GROUP} bytes")
    return pa.Table.from_batches(batches, schema=batches[0].schema if batches else None)


def _picture(cell: object, folder: str) -> bytes:
    """The encoded picture in a cell, or in the file that the cell names by its path from `folder`."""
    if isinstance(cell, list) and len(cell) > 1:
        raise BadRecord("row with several pictures")
    if isinstance(cell, list):
        cell = cell[0] if cell else None
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and cell:
        return read_picture(os.path.join(folder, cell))
    if not isinstance(cell, bytes) or not cell:
        raise BadRecord("row without picture bytes")
    return cell


def _kind_of_cell(kind: pa.DataType) -> pa.DataType:
    """The type of a single value in a column: without the dictionaries, lists and extensions around it."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
            kind = kind.value_type
        else:
            return kind


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _check_paths(column: str, file: str) -> None:
    """Raise UserError for a column of text, unless one of its first PATHS cells is the path of a file that is here."""
    with pq.ParquetFile(file) as parquet:
        cells = (
            cell for batch in parquet.iter_batches(PATHS, columns=[column]) for cell in batch.column(0).to_pylist()
        )
        texts = [cell[0] if isinstance(cell, list) else cell for cell in itertools.islice(filter(None, cells), PATHS)]
    folder = os.path.dirname(file)
    if not texts or any(isinstance(text, str) and os.path.isfile(os.path.join(folder, text)) for text in texts):
        return
    if re.match(r"https?://", str(texts[0])):
        raise UserError(
            f"{file}: column {column!r} holds addresses such as {texts[0]:.80}, not pictures; download them first, for "
            "instance with img2dataset, and name what it writes."
        )
    raise UserError(
        f"{file}: column {column!r} holds text, neither pictures nor paths of files that are here; make it a column of "
        "bytes (decoded, if it is base64), or set data.image_column."
    )
