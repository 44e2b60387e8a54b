"""Whether two sources hold the same data, which a resumed run has to know.

It is told by the names and sizes of the records and by some of the pictures, so a folder may move.
"""

from collections.abc import Iterator
from contextlib import suppress

import xxhash

from reca_fast.data.instructions import Conversations
from reca_fast.data.joined import cache_behind, parts_of
from reca_fast.data.records import BadRecord
from reca_fast.data.sources import Source

PICTURES, CONVERSATIONS = "data.source", "data.instructions"
NAMES = 1_000_000
"""How many records are compared by name, spread evenly over the source. More would take longer than a second."""
SIZES = 10_000
"""How many records are compared by size, spread evenly over the source. More would take longer than a second."""
COMPARED = 32
"""How many records are compared by their picture."""


def identity_of_source(source: Source) -> dict[str, str]:
    """The identity of a source, in parts: the number of records, and checksums of names, sizes and pictures; of
    conversations, that of all texts as well.

    Checksums are xxh3 with 128 bits, in hex. Captions take no part, except in the size of the shard that holds them.
    """
    names, sizes, pictures = xxhash.xxh3_128(), xxhash.xxh3_128(), xxhash.xxh3_128()
    for index in spread(len(source), NAMES):
        names.update(source.key(index).encode("utf-8", "surrogatepass") + b"\n")
    for index in spread(len(source), SIZES):
        with suppress(OSError):
            sizes.update(f"{index} {source.size(index)}\n".encode())
    for index in spread(len(source), COMPARED):
        try:
            pictures.update(source.read(index).image)
        except BadRecord as bad:
            pictures.update(bad.reason.encode())
    texts = {"texts": source.texts} if isinstance(source, Conversations) else {}
    return {
        **texts,
        "number of records": str(len(source)),
        "names": names.hexdigest(),
        "sizes": sizes.hexdigest(),
        "pictures": pictures.hexdigest(),
    }


def identities(source: Source) -> dict[str, dict[str, str]]:
    """Setting -> identity of what it leads to, for the pictures and the conversations of which a source consists.

    For a cache, they are those of what it was made of. A limit does not count.
    """
    if cache := cache_behind(source):
        found = {PICTURES: cache.index.source, CONVERSATIONS: cache.index.instructions}
    else:
        parts = zip((PICTURES, CONVERSATIONS), parts_of(source), strict=True)
        found = {setting: {} if part is None else identity_of_source(part) for setting, part in parts}
    return {setting: identity for setting, identity in found.items() if identity}


def spread(records: int, most: int) -> Iterator[int]:
    """At most `most` numbers of records, evenly spread from the first to the last."""
    if records <= most:
        yield from range(records)
    else:
        yield from (number * (records - 1) // (most - 1) for number in range(most))
