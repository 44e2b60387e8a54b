"""Captions in a table beside the pictures, in the layout that `datasets` calls imagefolder.

The table is called metadata.jsonl, metadata.csv or metadata.parquet and has one row for each picture. `file_name` in it
is the path of the picture from the table's own folder.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from reca_fast.config import DataConfig
from reca_fast.data.captions import FIELDS, Captions, captions_in_cell
from reca_fast.data.reasons import Reasons

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def is_metadata(file: str) -> bool:
    return os.path.basename(file).lower() in NAMES


def read_metadata(files: Iterable[str], config: DataConfig, ignored: Reasons) -> dict[str, Captions]:
    """Absolute path of a picture -> its captions, from all tables together.

    Args:
        files: the tables.
        config: names the column with the captions, and which of them counts. Rows without the column are searched for
            one of `captions.FIELDS`.
        ignored: takes damaged tables and rows.
    """
    found: dict[str, Captions] = {}
    for file in files:
        folder = os.path.dirname(os.path.abspath(file))
        try:
            for row in _rows(file):
                if row is None:
                    ignored.add("damaged row of metadata", file)
                    continue
                name = row.get("file_name")
                if not isinstance(name, str) or "\0" in name:
                    ignored.add("row of metadata without a file_name", file)
                    continue
                column = next(
                    (column for column in (config.caption_column, *FIELDS) if row.get(column) is not None), None
                )
                path = os.path.normpath(os.path.join(folder, name))
                found[path] = captions_in_cell(row[column], config.caption_name) if column else Captions()
        except (OSError, ValueError, csv.Error):  # ValueError: no UTF-8, pyarrow's own
            ignored.add("damaged metadata, read as far as it goes", file)
    return found


def _rows(file: str) -> Iterator[dict[str, Any] | None]:
    """The rows of a table. A line of a .jsonl file that is no JSON gives None, since the next line may be sound."""
    ending = os.path.splitext(file)[1].lower()
    if ending == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()
        return
    if ending == ".csv":
        with open(file, encoding="utf-8-sig", newline="") as lines:
            yield from csv.DictReader(lines)
        return
    with open(file, "rb") as raw:
        yield from (_row(line) for line in raw if line.strip())


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else {}
