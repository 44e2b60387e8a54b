"""All records of a run as one source: the pictures of `data.source`, and behind them the conversations of
`data.instructions`.
"""

from dataclasses import replace

from reca_fast.config import DataConfig
from reca_fast.data.cache.source import CacheSource
from reca_fast.data.instructions import Conversations, open_instructions
from reca_fast.data.reasons import Reasons
from reca_fast.data.records import Record
from reca_fast.data.sources import Source, open_source
from reca_fast.data.sources.folder import ROW_WITHOUT_PICTURE
from reca_fast.data.sources.limited import LimitedSource
from reca_fast.sample import RECA, T2I


class JoinedSource:
    """The records of one source, and then those of another one."""

    def __init__(self, pictures: Source, conversations: Conversations) -> None:
        self.pictures, self.conversations = pictures, conversations
        self.ignored = Reasons()
        for source in (pictures, conversations):
            for reason, count in source.ignored.counts.items():
                self.ignored.counts[reason] = self.ignored.counts.get(reason, 0) + count
                self.ignored.examples.setdefault(reason, list(source.ignored.examples[reason]))

    def __len__(self) -> int:
        return len(self.pictures) + len(self.conversations)

    def key(self, index: int) -> str:
        source, index = self._find(index)
        return source.key(index)

    def size(self, index: int) -> int:
        source, index = self._find(index)
        return source.size(index)

    def read(self, index: int) -> Record:
        source, index = self._find(index)
        return source.read(index)

    def _find(self, index: int) -> tuple[Source, int]:
        behind = index - len(self.pictures)
        return (self.pictures, index) if behind < 0 else (self.conversations, behind)


def open_data(config: DataConfig) -> Source:
    """The source of a run: `data.source`, `data.instructions`, one behind the other, or the cache of them.

    Conversations are opened where they are learned from, which takes a weight of i2t; pictures where another task draws
    from them, as many as `data.limit` says.

    Raises:
        UserError: what is named is not there or of no use.
    """
    if config.cache or not config.has_instructions:
        source = open_source(config)
        last = conversations_in(source)
        if 0 < config.limit < len(source) - last:
            return LimitedSource(source, config.limit, config.seed, last)
        return source
    conversations = open_instructions(config)
    if config.serve == "all" or not any(getattr(config.tasks, task) for task in (RECA, T2I)):
        return conversations
    return JoinedSource(open_data(replace(config, instructions="")), conversations)


def open_pictures(config: DataConfig) -> Source:
    """The pictures that grids show, not from a cache: those of `data.source`, or of conversations where it is empty."""
    config = replace(config, cache="")
    return open_source(config) if config.source or not config.instructions else open_instructions(config)


def says_left_out(source: Source) -> list[str]:
    """A line about each file that names pictures which are not there, or conversations that cannot be used: a mistyped
    folder shows before a run of days.
    """
    pictures, conversations = parts_of(source)
    lines = [conversations.says_left_out()] if conversations else []
    if pictures is not None and (lost := pictures.ignored.counts.get(ROW_WITHOUT_PICTURE)):
        first = ", ".join(pictures.ignored.examples[ROW_WITHOUT_PICTURE])
        lines.append(f"data.source: {lost} rows of metadata name a picture that is not there (e.g. {first}).")
    return [line for line in lines if line]


def cache_behind(source: Source) -> CacheSource | None:
    """The cache that a source reads from; None where it reads no cache."""
    base = source.base if isinstance(source, LimitedSource) else source
    return base if isinstance(base, CacheSource) else None


def parts_of(source: Source) -> tuple[Source | None, Conversations | None]:
    """The pictures and the conversations of which a source consists, without a limit. A cache counts as pictures."""
    if isinstance(source, LimitedSource):
        return parts_of(source.base)
    if isinstance(source, JoinedSource):
        return parts_of(source.pictures)[0], source.conversations
    return (None, source) if isinstance(source, Conversations) else (source, None)


def conversations_in(source: Source) -> int:
    """How many records of a source, its last ones, are conversations."""
    if cache := cache_behind(source):
        return cache.index.conversations
    conversations = parts_of(source)[1]
    return 0 if conversations is None else len(conversations)
