"""Where records come from. `open_source` finds out which kind of source the setting `data.source` names."""

import glob
import os
import re
from collections import Counter, defaultdict
from pathlib import Path

from reca_fast.config import DataConfig
from reca_fast.data.formats import PICTURES
from reca_fast.data.reasons import Reasons
from reca_fast.data.records import Record
from reca_fast.data.shipped import located
from reca_fast.data.sources.base import Source, ending_of, why_no_picture
from reca_fast.data.sources.files import find_files, is_pattern
from reca_fast.data.sources.metadata import is_metadata, read_metadata
from reca_fast.data.sources.toy import PREFIX as TOY
from reca_fast.data.sources.toy import ToySource
from reca_fast.errors import UserError

__all__ = ["Record", "Source", "open_files", "open_source"]

PICTURE, TAR, PARQUET, COMPRESSED, OTHER = "pictures", "tar shards", "parquet files", "compressed tars", "other"
COMPRESSED_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
SAVED_BY_DATASETS = ("state.json", "dataset_dict.json")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def open_source(config: DataConfig) -> Source:
    """The source that `config.source` names.

    It may be what `open_files` opens, a folder written by save_to_disk of `datasets`, the id of a dataset on the
    Hugging Face hub, what ships with the package (shipped:shapes), or a pool of the toy world (toy:base).

    Where `config.cache` is set, it is that cache, whatever `config.source` names.

    Raises:
        UserError: nothing is there, it is none of these, or several of these lie together.
    """
    if config.cache:
        from reca_fast.data.cache.source import CacheSource

        return CacheSource(Path(config.cache))
    if config.source.startswith(TOY):
        return ToySource(config.source.removeprefix(TOY), config.caption_name)
    name = os.path.expanduser(located(config.source))
    if not name:
        raise UserError("data.source is empty; give a folder, tar shards, parquet files or a Hugging Face dataset.")
    if any((Path(name) / mark).is_file() for mark in SAVED_BY_DATASETS):
        return _hugging_face(config, folder=name)
    if not is_pattern(name) and not os.path.exists(name) and _may_be_on_hub(config.source):
        return _hugging_face(config, folder=None)
    return open_files(name, config)


def open_files(name: str, config: DataConfig, setting: str = "data.source") -> Source:
    """The source in some files: pictures, tar shards or parquet files.

    Beside pictures there may be a metadata file with their captions, beside tar shards the tables of img2dataset.

    Args:
        name: one file, a folder, a glob, or a pattern like `shard-{000..012}.tar`.
        config: names the columns.
        setting: that holds the name, for messages.

    Raises:
        UserError: nothing is there, it is none of these, or several of these lie together.
    """
    ignored = Reasons()
    files = find_files(name, ignored, setting)
    is_folder = os.path.isdir(name)
    base = os.path.abspath(name) if is_folder or not files else _common_folder(files)
    by_kind: dict[str, list[str]] = defaultdict(list)
    for file in files:
        by_kind[_kind(file)].append(file)
    others = by_kind.pop(OTHER, [])
    tables = _tables_beside(by_kind)
    for file in tables:
        ignored.add("table beside its pictures", os.path.relpath(file, base))
    if COMPRESSED in by_kind and (TAR in by_kind or len(by_kind) == 1):
        raise UserError(f"{by_kind[COMPRESSED][0]} is compressed: no random access; decompress it to .tar.")
    others += by_kind.pop(COMPRESSED, [])
    metadata = (
        [file for file in (*others, *by_kind.get(PARQUET, ())) if is_metadata(file)] if PICTURE in by_kind else []
    )
    for kind in list(by_kind):
        by_kind[kind] = [file for file in by_kind[kind] if file not in {*tables, *metadata}]
        if not by_kind[kind]:
            del by_kind[kind]
    if len(by_kind) > 1:
        raise UserError(_several_kinds(f"{setting} {name!r}", by_kind, name if is_folder else None))
    if PICTURE in by_kind:
        from reca_fast.data.sources.folder import FolderSource

        beside = [file for file in others if file not in metadata]
        captions = read_metadata(metadata, config, ignored)
        return FolderSource(base, by_kind[PICTURE] + beside, captions, ignored, config.caption_name)
    for file in others:
        ignored.add(why_no_picture(ending_of(file)), os.path.relpath(file, base))
    if TAR in by_kind:
        from reca_fast.data.sources.tar import TarSource

        return TarSource(base, by_kind[TAR], ignored, config.caption_name, setting)
    if PARQUET in by_kind:
        from reca_fast.data.sources.parquet import ParquetSource

        return ParquetSource(base, by_kind[PARQUET], config, ignored)
    left_out = f"; ignored: {ignored}" if ignored else ""
    raise UserError(f"{setting} {name!r} holds no pictures, tar shards or parquet files{left_out}.")


def _hugging_face(config: DataConfig, folder: str | None) -> Source:
    from reca_fast.data.sources.hugging_face import HuggingFaceSource

    return HuggingFaceSource(config, folder)


def _may_be_on_hub(name: str) -> bool:
    """Whether a name is written owner/name and is no path: it has no file's ending, and there is no folder `owner`."""
    is_file = _kind(name) != OTHER or os.path.isdir(os.path.dirname(name))
    return HUB_ID.fullmatch(name) is not None and not is_file


def _kind(file: str) -> str:
    if os.path.basename(file).lower().endswith(COMPRESSED_ENDINGS):
        return COMPRESSED
    ending = ending_of(file)
    return {".tar": TAR, ".parquet": PARQUET}.get(ending, PICTURE if ending in PICTURES else OTHER)


def _common_folder(files: list[str]) -> str:
    return os.path.commonpath([os.path.dirname(file) for file in files])


def _tables_beside(by_kind: dict[str, list[str]]) -> list[str]:
    """Parquet files named as a tar shard or a folder of pictures beside them: img2dataset writes such descriptions."""
    shards = {os.path.splitext(file)[0] for file in by_kind.get(TAR, ())}
    shards |= {os.path.dirname(file) for file in by_kind.get(PICTURE, ())}
    return [file for file in by_kind.get(PARQUET, ()) if os.path.splitext(file)[0] in shards]


def _several_kinds(source: str, by_kind: dict[str, list[str]], folder: str | None) -> str:
    ways = []
    for kind in sorted(by_kind):
        usual = Counter(os.path.splitext(file)[1] for file in by_kind[kind]).most_common(1)[0][0]
        ways.append(repr(os.path.join(glob.escape(folder), "**", f"*{usual}") if folder else f"*{usual}"))
    return f"{source} holds {' and '.join(sorted(by_kind))}; name one kind by a glob: {' or '.join(ways)}."
