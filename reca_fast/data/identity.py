"""Is it the same data? Told by names, sizes and samples, so that a folder may move."""

from collections.abc import Iterator
from contextlib import suppress

import xxhash

from reca_fast.data.records import BadRecord
from reca_fast.data.sources import Source

NAMES = 1_000_000
"""Records whose name is compared, evenly spread: a second's work."""
SIZES = 10_000
"""Records whose size is compared, evenly spread: all of a small source, and a second's work on a large one."""
PICTURES = 32
"""Records whose picture is compared."""


def identity_of_source(source: Source) -> dict[str, str]:
    """What makes out a source, each as text: the number of records, checksums (xxh3, hex) of names, sizes and pictures.

    Captions do not count beyond the shards' sizes.
    """
    names, sizes, pictures = xxhash.xxh3_128(), xxhash.xxh3_128(), xxhash.xxh3_128()
    for index in _spread(len(source), NAMES):
        names.update(source.key(index).encode("utf-8", "surrogatepass") + b"\n")
    for index in _spread(len(source), SIZES):
        with suppress(OSError):
            sizes.update(f"{index} {source.size(index)}\n".encode())
    for index in _spread(len(source), PICTURES):
        try:
            pictures.update(source.read(index).image)
        except BadRecord as bad:
            pictures.update(bad.reason.encode())
    return {
        "number of records": str(len(source)),
        "names": names.hexdigest(),
        "sizes": sizes.hexdigest(),
        "pictures": pictures.hexdigest(),
    }


def _spread(records: int, most: int) -> Iterator[int]:
    """At most `most` record numbers, evenly spread, the first and the last among them."""
    if records <= most:
        yield from range(records)
    else:
        yield from (number * (records - 1) // (most - 1) for number in range(most))
