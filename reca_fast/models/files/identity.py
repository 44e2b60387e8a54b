"""Checksums by which a run recognises the checkpoint that it started from, and a cache the encoders that made it,
wherever their files lie now.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import xxhash

from reca_fast.errors import UserError, reading

from .weights import Weights

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


def identity_of_tensors(weights: Weights, keys: Mapping[str, str], *settings: object) -> str:
    """A checksum (xxh3, 128 bits, hexadecimal) of some tensors of a file, every byte of them, and of the settings that
    they are used with. Other tensors of the file, their order and the kind of file have no part in it.

    Args:
        weights: the opened file; tensors are read one by one.
        keys: name by which a tensor counts -> its key in the file, so that a prefix may differ.
        settings: plain values or dataclasses of them.

    Raises:
        UserError: the file lacks a tensor.
    """
    if missing := sorted(key for key in keys.values() if key not in weights.shapes):
        raise UserError(f"{weights.path} lacks {missing[0]}; take the checkpoint from where it came.")
    state = xxhash.xxh3_128(repr(settings).encode())
    for name in sorted(keys):
        tensor = weights.tensor(keys[name])
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        state.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


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
