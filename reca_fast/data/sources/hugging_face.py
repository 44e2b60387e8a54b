"""A Hugging Face dataset: a folder written by save_to_disk of `datasets`, or the id of a dataset on the hub."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from reca_fast.config import DataConfig
from reca_fast.data.captions import captions_in_cell
from reca_fast.data.reasons import Reasons
from reca_fast.data.records import BadRecord, Record, record
from reca_fast.data.sources.base import check_column
from reca_fast.data.sources.folder import read_picture
from reca_fast.data.sources.hub import endpoint, go_offline_unless_reachable, may_be_cached
from reca_fast.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset


class HuggingFaceSource:
    """The rows of one split, which `datasets` maps into memory. Keys are the split and the row: "train/000000012".

    Args:
        config: names the dataset, the split and the columns.
        folder: the folder written by save_to_disk; None for a dataset on the hub.
    """

    def __init__(self, config: DataConfig, folder: str | None) -> None:
        # Before the import: it takes seconds, and reads whether the hub may be asked.
        if not folder and not go_offline_unless_reachable() and not may_be_cached(config.source):
            raise _offline(config.source)
        from datasets import Image

        self.ignored = Reasons()
        rows = open_folder(folder, config.split) if folder else _from_hub(config.source, config.split)
        where = f"data.source {config.source!r}"
        check_column("data.image_column", config.image_column, rows.column_names, where)
        if config.needs_captions:
            check_column("data.caption_column", config.caption_column, rows.column_names, where)
        if not len(rows):
            raise UserError(f"{where}: split {config.split!r} holds no rows.")
        self._split, self._image, self._caption = config.split, config.image_column, config.caption_column
        self._name = config.caption_name
        rows = rows.select_columns([c for c in (self._image, self._caption) if c in rows.column_names])
        kind = rows.features[self._image]
        is_bytes = getattr(kind, "dtype", None) in ("binary", "large_binary")
        if not (is_bytes or isinstance(kind, Image) or (isinstance(kind, dict) and "bytes" in kind)):
            raise UserError(f"{where}: column {self._image!r} holds {kind}, not pictures; set data.image_column.")
        # Rows come as Arrow tables, whatever format was saved: a damaged table can be told before Python reads it.
        self._rows = rows.cast_column(self._image, Image(decode=False)).with_format("arrow")

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        return f"{self._split}/{index:09d}"

    def size(self, index: int) -> int:
        return 0

    def read(self, index: int) -> Record:
        try:
            table = self._rows[index]
            table.validate(full=True)
            row = table.to_pylist()[0]
        except (OSError, ValueError) as error:  # pyarrow's own, and text that is no UTF-8
            raise BadRecord("unreadable row", str(error)) from error
        return record(self.key(index), _encoded(row[self._image]), captions_in_cell(row.get(self._caption), self._name))


def _encoded(picture: dict[str, Any] | None) -> bytes:
    """The encoded picture in a cell, or in the file that the cell names."""
    if picture and picture["bytes"]:
        inside: bytes = picture["bytes"]
        return inside
    if not (picture and picture["path"]):
        raise BadRecord("row without picture bytes")
    return read_picture(picture["path"])


def open_folder(folder: str, split: str) -> "Dataset":
    """The rows of a split in a folder written by save_to_disk. Raises UserError when it is damaged or has no such."""
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} is not a whole folder of save_to_disk ({error}); save the dataset again.") from error
    if not isinstance(found, DatasetDict):
        return found
    if split not in found:
        raise UserError(
            f"{folder} has no split {split!r}; it has {', '.join(map(repr, found))}. Set data.split."
            + did_you_mean(split, found)
        )
    return found[split]


def _offline(name: str) -> UserError:
    return UserError(
        f"data.source {name!r} is no path here, and the Hugging Face hub is offline ({endpoint()} does not answer, or "
        "HF_HUB_OFFLINE is set) with no copy of such a dataset in its cache. Check the path, or the network."
    )


def _from_hub(name: str, split: str) -> "Dataset":
    is_asked = go_offline_unless_reachable()
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        with _quiet_hub():
            return load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        if not is_asked:
            raise _offline(name) from error
        raise UserError(
            f"data.source {name!r} is no path here, and as a dataset of the Hugging Face hub its split "
            f"{split!r} cannot be loaded: {' '.join(str(error).split()).removesuffix('.')}; check the name."
        ) from error


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """A context without the progress bars of the hub's libraries and without their messages about every attempt."""
    import datasets
    import huggingface_hub.utils

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
