"""A record: one picture as its source holds it, encoded; and the exceptions for records that are of no use."""

from dataclasses import dataclass
from typing import Protocol

from reca_fast.data.captions import NO_CAPTION, Caption, Captions
from reca_fast.data.inputs import Size
from reca_fast.sample import Encoded, Turn


class Cached(Protocol):
    """What a cache holds in place of a record's picture."""

    @property
    def size(self) -> Size:
        """Width and height of the picture as it is seen, in pixels, before it was resized."""
        ...

    def read(self, condition: Size | None, target: Size | None) -> tuple[Encoded | None, Encoded | None]:
        """What the encoders made of the condition and of the target; None for a size that is None.

        Raises:
            BadImage: the picture could not be decoded when the cache was made.
            UserError: the cache is damaged, or holds pictures of other sizes.
        """
        ...


@dataclass(frozen=True)
class Record:
    """One picture as its source holds it."""

    key: str  # unique in its source, and the same when the source moves to another folder
    image: bytes  # the encoded picture: a JPEG, PNG, ... file
    caption: Caption | None  # one caption, or several of which each epoch uses one
    lack: str = NO_CAPTION  # why there is no caption, in a short fixed phrase
    cached: Cached | None = None  # from a cache, in place of `image`, which is empty then
    turns: tuple[Turn, ...] = ()  # a conversation about the picture, from instruction data, where there are no captions


def record(key: str, image: bytes, captions: Captions) -> Record:
    """The record of a picture and of what was found for its captions."""
    return Record(key, image, captions.caption, captions.lack)


class BadRecord(Exception):
    """One record that cannot be used. The loader skips it and counts it under `reason`, a short fixed phrase."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class BadImage(BadRecord):
    """A record whose picture cannot be read."""


class NoCaption(BadRecord):
    """A record that lacks the caption that its task needs."""
