"""Checksums by which a run recognises the checkpoint that it started from, wherever its folder lies now."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import xxhash

from reca_fast.errors import reading

WHOLE = 1 << 26
"""Files of up to so many bytes are read whole."""
BEGINNING = 1 << 20
BLOCKS, BLOCK = 4096, 4096
"""Of a larger file so many bytes at its beginning are read, and so many pieces of so many bytes at even distances: 7 MB
in a file of 29 GB.
"""


def identity_of_files(files: Sequence[Path]) -> dict[str, str]:
    """File name -> checksum (xxh3, 128 bits, hexadecimal) of the file's size and content. Files of one name have their
    folder's in front: vae/config.json.

    Large files are read in part (see BLOCKS), so that 29 GB take seconds.

    Raises:
        UserError: a file cannot be read.
    """
    names = Counter(path.name for path in files)
    called = {(path.name if names[path.name] == 1 else f"{path.parent.name}/{path.name}"): path for path in files}
    return {name: _checksum(path) for name, path in called.items()}


def _checksum(path: Path) -> str:
    with reading(path), open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        state = xxhash.xxh3_128(str(size).encode())
        if size <= WHOLE:
            state.update(file.readall())
        else:
            state.update(file.read(BEGINNING))  # names, shapes and places of the tensors
            for number in range(BLOCKS):
                file.seek((size - BLOCK) * number // (BLOCKS - 1))
                state.update(file.read(BLOCK))
    return state.hexdigest()
