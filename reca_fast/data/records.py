"""One picture as it lies on disk, and why a record may be of no use."""

from dataclasses import dataclass

from reca_fast.data.captions import NO_CAPTION, Caption, Captions


@dataclass(frozen=True)
class Record:
    """One picture as it lies on disk."""

    key: str  # unique in its source and independent of where the source lies
    image: bytes  # encoded picture
    caption: Caption | None  # one, or several of which an epoch uses one
    lack: str = NO_CAPTION  # why there is none, in a short fixed phrase


def record(key: str, image: bytes, captions: Captions) -> Record:
    """A record with what was found for its caption."""
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
