"""Pictures by their names: which picture of a folder or of tar shards a conversation means."""

import posixpath
from collections.abc import Sequence

import numpy as np
import xxhash

from reca_fast.data.records import BadRecord
from reca_fast.data.sources import Source
from reca_fast.data.sources.tar import TarSource

NOWHERE = -1
"""In place of the number of a picture that is not there."""


def plain_name(name: str) -> str:
    """The name of a picture as a path from the folder that all of them lie in, with forward slashes.

    Raises:
        BadRecord: it leads out of that folder, or is no possible path.
    """
    name = posixpath.normpath(name.replace("\\", "/"))
    if name.startswith(("/", "../")) or name in ("..", ".") or "\0" in name or name[1:3] == ":/":
        raise BadRecord("picture outside of data.instruction_images")
    return name


def digest(name: str) -> int:
    """64 bits for a plain name, by which millions of names are compared in little memory."""
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))


class Names:
    """The pictures of a source by name.

    Args:
        source: a folder or tar shards. A picture in a shard has the name that it has in there; of several with one
            name, the first counts.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        names = (self.name(index) for index in range(len(source)))
        digests = np.fromiter(map(digest, names), np.uint64, len(source))
        self._order = np.argsort(digests, kind="stable")
        self._digests = digests[self._order]

    def name(self, index: int) -> str:
        """The name of a picture of the source."""
        key = self._source.key(index)
        return posixpath.normpath(key.partition(".tar/")[2]) if isinstance(self._source, TarSource) else key

    def find(self, digests: Sequence[int] | np.ndarray) -> np.ndarray:
        """int64 [n]: the number of the picture with each of these digests, NOWHERE where there is none."""
        wanted = np.asarray(digests, np.uint64)
        if not len(self._digests):
            return np.full(len(wanted), NOWHERE)
        at = np.searchsorted(self._digests, wanted).clip(max=len(self._digests) - 1)
        return np.where(self._digests[at] == wanted, self._order[at], NOWHERE)
