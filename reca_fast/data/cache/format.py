"""How a cache of encoded pictures lies on disk.

    cache.json                 what made it (`Index`), written first and never changed
    shard-00000.safetensors    what the encoders made of records 0 to records_per_shard - 1, and so on

A shard is written under a hidden name and renamed when it is whole. Whatever has a plain name can be used, even after
`kill -9`. Its metadata hold a description of each of its records (`Entry`), the unusable ones too, with a checksum over
it and over the tensors. Nothing in these files can be executed.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from reca_fast.data.captions import NO_CAPTION
from reca_fast.data.reasons import Reasons
from reca_fast.errors import UserError, writing
from reca_fast.mapped import MappedFile
from reca_fast.sample import Encoded
from reca_fast.schema import Range, from_dict, read_json

INDEX_FILE = "cache.json"
EARLIER = (1, 2)
"""Formats of the index that are no longer read."""
RECORDS = "records"
"""Key in the metadata of a shard."""
DTYPES = {
    **{"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16},
    **{"int64": torch.int64, "int16": torch.int16},
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
Count = Annotated[int, Range(0, 2**53)]


@dataclass
class Index:
    """The contents of cache.json: how many records there are, and all that their encoding depends on."""

    records: Annotated[int, Range(1, 2**53)]
    records_per_shard: Annotated[int, Range(1, 2**20)]
    encoders: dict[str, str]  # name of an encoder of the model -> checksum of its weights and sizes
    source: dict[str, str]  # identity of the pictures of data.source, in parts; empty where there are none
    settings: dict[str, bool | int | float | str]  # dotted name -> value, of those settings that the pictures depend on
    holds: list[Literal["condition", "target"]]  # what is stored of each picture
    ignored: Reasons = field(default_factory=Reasons)  # files of the source that are no records
    conversations: Count = 0  # how many of the records, the last ones, are conversations
    instructions: dict[str, str] = field(default_factory=dict)  # identity of data.instructions, in parts
    format: Literal[3] = 3

    @property
    def shards(self) -> int:
        return -(-self.records // self.records_per_shard)

    def of_shard(self, shard: int) -> range:
        """The numbers of the records that a shard holds."""
        start = shard * self.records_per_shard
        return range(start, min(start + self.records_per_shard, self.records))


@dataclass
class StoredTensor:
    """One tensor of a record."""

    picture: Literal["condition", "target"]
    name: str  # the model's own
    dtype: Literal["fp32", "bf16", "fp16", "int64", "int16"]
    """As the model made it; a file may hold it in fewer bits, exactly."""


@dataclass
class Entry:
    """One record of a shard."""

    key: str
    size: tuple[Count, Count] | None = None  # of the picture as it is seen; None where its header cannot be read
    bad: str = ""  # why the picture cannot be used; empty where it can
    captions: list[str] | str | None = None
    lack: str = NO_CAPTION  # why there is no caption
    turns: list[tuple[str, str]] = field(default_factory=list)  # questions and answers, of a conversation
    sizes: dict[str, tuple[Count, Count]] = field(default_factory=dict)
    tensors: list[StoredTensor] = field(default_factory=list)


@dataclass
class _Described:
    """What the metadata of a shard hold of one record. They are a list of texts, so that each is read by itself."""

    entry: Entry
    checksum: str  # xxh3, 128 bits, hex: of the entry and its tensors


@dataclass
class _Texts:
    """The metadata of a shard."""

    records: list[str]


class Damaged(UserError):
    """A shard is not what was written."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} is damaged ({what}); remove it and give the same `reca-fast cache` command again.")


def shard_path(folder: Path, shard: int) -> Path:
    """Where a shard of a cache lies, whether or not it is there yet."""
    return folder / f"shard-{shard:05d}.safetensors"


def begin_cache(folder: Path, index: Index) -> None:
    """Write the index of a new cache, or make sure that the one that is there was made by the same.

    Raises:
        UserError: the folder cannot be written, or holds a cache that something else made, which is named.
    """
    path = folder / INDEX_FILE
    if path.exists():
        before = read_index(folder)
        refuse_other(before, index, folder, "name another --out")
        if before.records_per_shard != index.records_per_shard:
            raise UserError(
                f"{folder} has {before.records_per_shard} records in a shard; set --records_per_shard to that, or name "
                "another --out."
            )
        return
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{INDEX_FILE}.{os.getpid()}.partial"  # several processes may begin at once
        partial.write_text(json.dumps(asdict(index), indent=1) + "\n")
        partial.rename(path)


def read_index(folder: Path) -> Index:
    """The index of a cache. Raises UserError when the folder is none, or its index is damaged."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise UserError(f"{folder} is no cache: it holds no {INDEX_FILE}; `reca-fast cache --out {folder}` makes one.")
    values = read_json(path)
    if isinstance(values, dict) and values.get("format") in EARLIER:
        raise UserError(
            f"{folder} was made by an earlier version of reca-fast, whose caches are no longer read: remove it, and "
            "make it again with `reca-fast cache`."
        )
    return from_dict(Index, values, str(path))


def refuse_other(made: Index, now: Index, folder: Path, way_out: str) -> None:
    """Raise UserError, naming the first difference, when a cache was made of something else than what is used now."""
    for name, value in now.settings.items():
        if (before := made.settings.get(name)) != value:
            raise UserError(f"{folder} was made with {name}={before}, now it is {value}; set it back, or {way_out}.")
    for what, before_parts, parts in (
        ("model.path", made.encoders, now.encoders),
        ("data.source", made.source, now.source),
        ("data.instructions", made.instructions, now.instructions),
    ):
        if differing := [part for part in {**before_parts, **parts} if before_parts.get(part) != parts.get(part)]:
            raise UserError(
                f"{folder} was made from another {what}: it differs in {', '.join(differing)}; set it back, or "
                f"{way_out}."
            )
    if missing := [name for name in now.holds if name not in made.holds]:
        raise UserError(
            f"{folder} holds no {missing[0]}s, which data.tasks ask for: it was made for other tasks; set them back, "
            f"or {way_out}."
        )


def write_shard(path: Path, records: Sequence[tuple[Entry, Mapping[str, Encoded]]]) -> None:
    """Write a shard and wait until it is safe on the disk.

    Args:
        path: its place; a shard that is there is replaced.
        records: of each, its entry, and "condition" and "target" -> what the encoders made of them, as far as stored.

    Raises:
        UserError: it cannot be written. Shards that are whole stay.
    """
    described, tensors = [], {}
    for number, (entry, pictures) in enumerate(records):
        stored = []
        for picture, encoded in pictures.items():
            for name, tensor in encoded.tensors.items():
                kept = StoredTensor(picture, name, NAMES[tensor.dtype])  # type: ignore[arg-type]
                entry.tensors.append(kept)
                stored.append(_narrowed(tensor.cpu()))
                tensors[_key(number, kept)] = stored[-1]
        described.append(json.dumps(asdict(_Described(entry, _checksum(entry, stored)))))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        with open(partial, "wb") as file:
            file.write(save(tensors, {RECORDS: json.dumps(described)}))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)


def sweep(path: Path) -> None:
    """Remove what a killed process left of a shard."""
    for partial in path.parent.glob(f".{path.name}.*.partial"):
        partial.unlink(missing_ok=True)


class Shard:
    """An opened shard. What it holds of a record is read when it is asked for. Threads may share it.

    Args:
        path: the file.
        records: how many records it has to hold.

    Raises:
        Damaged: the file is not what `write_shard` writes.
        UserError: it is missing.
    """

    def __init__(self, path: Path, records: int) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(f"{path} is missing; give the same `reca-fast cache` command again, which goes on.")
        try:
            self._file = MappedFile(path)
            self._described = from_dict(_Texts, {RECORDS: json.loads(self._file.metadata[RECORDS])}, str(path)).records
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError, UserError) as error:
            raise Damaged(path, f"its header cannot be read: {type(error).__name__}") from None
        if len(self._described) != records:
            raise Damaged(path, f"it describes {len(self._described)} records, not {records}")

    def entry(self, number: int) -> Entry:
        """The description of record `number` of this shard."""
        return self._of(number).entry

    def read(self, number: int) -> dict[str, Encoded]:
        """What is stored of record `number`, under "condition" and "target", compared with its checksum."""
        described = self._of(number)
        entry = described.entry
        try:
            stored = [self._file.tensor(_key(number, tensor)) for tensor in entry.tensors]
        except KeyError:
            raise Damaged(self.path, f"tensors of {entry.key!r} are missing") from None
        if _checksum(entry, stored) != described.checksum:
            raise Damaged(self.path, f"the checksum of {entry.key!r} differs")
        tensors: dict[str, dict[str, Tensor]] = {picture: {} for picture in entry.sizes}
        for kept, tensor in zip(entry.tensors, stored, strict=True):
            tensors[kept.picture][kept.name] = tensor.to(DTYPES[kept.dtype])
        return {picture: Encoded(*size, tensors[picture]) for picture, size in entry.sizes.items()}

    def _of(self, number: int) -> _Described:
        text = self._described[number]
        try:
            described = from_dict(_Described, json.loads(text), str(self.path))
        except (ValueError, RecursionError, UserError):
            described = None
        if described is None or json.dumps(asdict(described)) != text:  # in other words than write_shard's
            raise Damaged(self.path, f"the description of record {number} cannot be read")
        return described


def whole_shards(folder: Path, index: Index) -> Iterator[int]:
    """The numbers of the shards that are there; what they hold is not looked at."""
    there = set(os.listdir(folder))
    return (shard for shard in range(index.shards) if shard_path(folder, shard).name in there)


def _key(number: int, tensor: StoredTensor) -> str:
    return f"{number}.{tensor.picture}.{tensor.name}"


def _narrowed(tensor: Tensor) -> Tensor:
    """An fp32 tensor in bf16 where that loses nothing: what autocast computed in bf16 takes half the room."""
    if tensor.dtype == torch.float32 and torch.equal((narrow := tensor.bfloat16()).float(), tensor):
        return narrow.contiguous()
    return tensor.clone(memory_format=torch.contiguous_format)  # of its own memory: safetensors refuses to share any


def _checksum(entry: Entry, tensors: Sequence[Tensor]) -> str:
    state = xxhash.xxh3_128(json.dumps(asdict(entry)).encode())
    for tensor in tensors:
        state.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
