"""Where records come from. `open_source` finds out which kind of source the setting data.source names."""

import glob
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from reca_fast.config import DataConfig
from reca_fast.data.sources.base import PICTURES, Record, Source
from reca_fast.errors import UserError

__all__ = ["Record", "Source", "open_source"]

TARS, PARQUET = (".tar",), (".parquet",)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
SAVED_BY_DATASETS = ("state.json", "dataset_dict.json")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
BRACES = re.compile(r"\{([^{}]*)\}")


def open_source(config: DataConfig) -> Source:
    """The source that `config.source` names.

    It may be a folder of pictures, tar shards or parquet files (one file, a folder, a glob, or a pattern like
    `shard-{000..012}.tar`), a folder written by datasets' save_to_disk, or the id of a dataset on the Hugging Face hub.
    Raises UserError when nothing is there or when it is none of these.
    """
    name = os.path.expanduser(config.source)
    if not name:
        raise UserError("data.source is empty; give a folder, tar shards, parquet files or a Hugging Face dataset.")
    if any((Path(name) / mark).is_file() for mark in SAVED_BY_DATASETS):
        return _hugging_face(config, folder=name)
    if not _is_pattern(name) and not os.path.exists(name) and _may_be_on_hub(config.source):
        return _hugging_face(config, folder=None)

    files = _files(name)
    base = os.path.abspath(name) if os.path.isdir(name) else os.path.commonpath([os.path.dirname(f) for f in files])
    by_kind: dict[str, list[str]] = defaultdict(list)
    for file in files:
        by_kind[_kind(file)].append(file)
    by_kind.pop("other", None)
    if "compressed" in by_kind:
        raise UserError(f"{by_kind['compressed'][0]} is compressed: no random access; decompress it to .tar.")
    if len(by_kind) > 1:
        raise UserError(
            f"data.source {config.source!r} holds {' and '.join(sorted(by_kind))}; "
            "name one kind with a glob such as 'folder/*.tar'."
        )
    if not by_kind:
        raise UserError(
            f"data.source {config.source!r} holds no pictures ({', '.join(PICTURES)}), tar shards or parquet files."
        )
    kind, chosen = by_kind.popitem()
    return _open(kind, base, chosen, config)


def _open(kind: str, base: str, files: list[str], config: DataConfig) -> Source:
    """The source over files of one kind; keys are relative to `base`. Imports only what that kind needs."""
    if kind == "pictures":
        from reca_fast.data.sources.folder import FolderSource

        return FolderSource(base, files)
    if kind == "tar shards":
        from reca_fast.data.sources.tar import TarSource

        return TarSource(base, files)
    from reca_fast.data.sources.parquet import ParquetSource

    return ParquetSource(base, files, config)


def _hugging_face(config: DataConfig, folder: str | None) -> Source:
    from reca_fast.data.sources.hugging_face import HuggingFaceSource

    return HuggingFaceSource(config, folder)


def _may_be_on_hub(name: str) -> bool:
    """Whether owner/name names no file: it has no ending of one, and no folder `owner` is here."""
    is_file = _kind(name) != "other" or os.path.isdir(os.path.dirname(name))
    return HUB_ID.fullmatch(name) is not None and not is_file


def _kind(file: str) -> str:
    name = os.path.basename(file).lower()
    suffixes = {"compressed": COMPRESSED, "tar shards": TARS, "parquet files": PARQUET, "pictures": PICTURES}
    return next((kind for kind, endings in suffixes.items() if name.endswith(endings)), "other")


def _files(name: str) -> list[str]:
    """Absolute paths of all files that a path, glob or brace pattern names, sorted; UserError when one is missing."""
    found: set[str] = set()
    for pattern in _expanded(name):
        if os.path.isdir(pattern):
            found.update(_walk(pattern))
        elif os.path.exists(pattern):
            found.add(pattern)
        else:
            matches = [match for match in glob.glob(pattern, recursive=True) if os.path.isfile(match)]
            if not matches:
                raise UserError(
                    f"data.source: nothing is found at {pattern!r}; check the path "
                    "(a dataset on the Hugging Face hub is written owner/name)."
                )
            found.update(matches)
    return sorted(map(os.path.abspath, found))


def _walk(folder: str) -> Iterator[str]:
    """All files below a folder except hidden ones."""
    for root, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [f for f in folders if not f.startswith(".")]
        yield from (os.path.join(root, n) for n in names if not n.startswith("."))


def _is_pattern(name: str) -> bool:
    return glob.has_magic(name) or BRACES.search(name) is not None


def _expanded(name: str) -> list[str]:
    """'a-{00..02}.tar' -> a-00.tar, a-01.tar, a-02.tar; '{x,y}.tar' -> x.tar, y.tar; a path that exists stays."""
    if os.path.exists(name):
        return [name]
    pieces = BRACES.split(name)  # text, inside of braces, text, ...
    choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if not numbers:
        return inside.split(",")
    first, last = numbers.groups()
    if int(last) < int(first):
        raise UserError(f"data.source: the range {{{inside}}} runs backwards.")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
