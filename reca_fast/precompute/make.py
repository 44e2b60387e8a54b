"""From pictures to a cache: worker threads decode ahead, this thread encodes and writes shard after shard."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from reca_fast.config import DataConfig, ModelConfig
from reca_fast.config.rules import check_data
from reca_fast.data.cache.format import Entry, Index, begin_cache, shard_path, sweep, whole_shards, write_shard
from reca_fast.data.cache.origin import index_of, is_cropped
from reca_fast.data.inputs import Inputs
from reca_fast.data.joined import open_data
from reca_fast.data.records import BadRecord
from reca_fast.data.samples import SampleBuilder
from reca_fast.data.sources import Source
from reca_fast.data.streams import open_streams
from reca_fast.errors import UserError
from reca_fast.models import Model, open_model
from reca_fast.sample import Encoded

from .progress import Progress

AHEAD = 4
"""Pictures that each worker thread decodes ahead of the encoders."""


class _Decoded(NamedTuple):
    """A record whose pictures are ready for the encoders; of a bad record the entry says why there are none."""

    entry: Entry
    pictures: Mapping[str, Tensor]


def make_cache(
    folder: Path,
    model_config: ModelConfig,
    data: DataConfig,
    *,
    device: torch.device,
    records_per_shard: int = 128,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Encode this process's share of a source into a cache. Shards that are whole already are kept.

    Args:
        folder: the cache, which is begun or gone on with.
        model_config, data: as for training.
        device: of the encoders.
        records_per_shard: how many records a shard holds. What is lost when a process is killed is less than one.
        rank, world: which process this is, of how many. They need not meet: each makes every `world`-th shard.

    Raises:
        UserError: what the user can mend; shards that are whole stay.
    """
    check_data(data)
    if data.cache:
        raise UserError("data.cache is what `train` reads; the cache that is made here goes to --out, leave it out.")
    model, source = open_model(model_config), open_data(data)
    inputs = model.inputs(data)
    if len(source) == 0:
        raise UserError("data.source holds no records.")
    index = index_of(model.identity_of_encoders(), source, model_config, data, records_per_shard)
    begin_cache(folder, index)
    whole = set(whole_shards(folder, index))
    mine = range(rank, index.shards, world)
    left = [shard for shard in mine if shard not in whole]
    progress = Progress(folder, index, rank, world, sum(len(index.of_shard(shard)) for shard in left))
    if left:
        model.fill_encoders(device)
    progress.begin(len(mine), len(left))
    if is_cropped(data) and rank == 0:
        print(f"{folder}: fit=crop, so every epoch of training from it sees the same crops, those of the first epoch.")
    if left:
        _Maker(model, source, inputs, data, index, device).make(folder, left, progress)
    progress.end()


def _served(weights: Mapping[str, float], data: DataConfig) -> list[tuple[str, ...]]:
    """The tasks that one sample of a stream may serve, each at a time or all at once."""
    return [tuple(weights)] if data.serve == "all" else [(task,) for task in weights]


class _Maker:
    """Encodes the records of shards.

    Args:
        device: where the encoders are.
    """

    def __init__(
        self,
        model: Model,
        source: Source,
        inputs: Inputs,
        data: DataConfig,
        index: Index,
        device: torch.device,
    ) -> None:
        self._model, self._source, self._inputs, self._builder = model, source, inputs, SampleBuilder(data, inputs)
        self._workers, self._index, self._device = data.workers, index, device
        streams = open_streams(data, index.records, index.conversations)
        self._tasks = [(stream.records, _served(stream.weights, data)) for stream in streams]

    def make(self, folder: Path, shards: Sequence[int], progress: Progress) -> None:
        """Write these shards."""
        with ThreadPoolExecutor(self._workers, "reca-decode") as workers:
            decoded = self._ahead(workers, [record for shard in shards for record in self._index.of_shard(shard)])
            for shard in shards:
                path = shard_path(folder, shard)
                sweep(path)
                records = []
                for _ in self._index.of_shard(shard):
                    entry, pictures = next(decoded)
                    records.append((entry, {name: self._encode(name, image) for name, image in pictures.items()}))
                    progress.count(entry)
                write_shard(path, records)

    def _ahead(self, workers: ThreadPoolExecutor, records: Sequence[int]) -> Iterator[_Decoded]:
        """The records in their order, decoded a few ahead."""
        waiting: deque[Future[_Decoded]] = deque()
        for record in records:
            waiting.append(workers.submit(self._decode, record))
            if len(waiting) > AHEAD * self._workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _decode(self, index: int) -> _Decoded:
        try:
            record = self._source.read(index)
            size = self._builder.picture_size(record.image)
        except BadRecord as bad:
            return _Decoded(Entry(self._source.key(index), bad=bad.reason), {})
        captions = list(record.caption) if isinstance(record.caption, tuple) else record.caption
        turns = [(turn.question, turn.answer) for turn in record.turns]
        entry = Entry(record.key, size, captions=captions, lack=record.lack, turns=turns)
        try:
            served = [tasks for records, several in self._tasks if index in records for tasks in several]
            plans = [self._inputs.plan(tasks, size, None) for tasks in served]
            condition = next((plan.condition for plan in plans if plan.condition), None)
            target = next((plan.target for plan in plans if plan.target), None)
            images = self._builder.pictures(record, size, condition, target, epoch=0)
        except BadRecord as bad:
            entry.bad = bad.reason
            return _Decoded(entry, {})
        named = zip(("condition", "target"), images, strict=True)
        pictures = {name: image for name, image in named if image is not None}
        entry.sizes = {name: (image.shape[1], image.shape[0]) for name, image in pictures.items()}
        return _Decoded(entry, pictures)

    def _encode(self, name: str, image: Tensor) -> Encoded:
        encode = self._model.encode_condition if name == "condition" else self._model.encode_target
        tensors = {key: tensor.cpu() for key, tensor in encode(image.to(self._device)).items()}
        return Encoded(image.shape[1], image.shape[0], tensors)
