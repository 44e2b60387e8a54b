"""Weights in several safetensors files, as hub folders hold large models: an index says which file has which tensor."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from reca_fast.errors import UserError

from .folder import read_object
from .read import open_weights
from .weights import Weights

INDEX = ".safetensors.index.json"
"""End of the name of a file that lists shards."""


def shards_of(path: Path) -> Mapping[str, tuple[str, ...]]:
    """Name of each file that an index lists -> the keys that it has, in the index's order.

    Raises:
        UserError: the index is missing or damaged, or names a file outside of its folder.
    """
    listed = read_object(path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{path} has no weight_map, which says where each tensor is; download it again.")
    shards: dict[str, list[str]] = {}
    for key, name in listed.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{path} says that {key[:100]} is in {str(name)[:100]!r}, which is no file beside it.")
        shards.setdefault(name, []).append(key)
    return {name: tuple(keys) for name, keys in shards.items()}


def weight_files(path: Path) -> list[Path]:
    """The safetensors files behind a file of weights: those that an index lists, or the file itself.

    Raises:
        UserError: see `shards_of`.
    """
    return [path.parent / name for name in shards_of(path)] if path.name.endswith(INDEX) else [path]


def open_sharded(path: Path) -> Weights:
    """Open a file of weights, or all files that an index (*.safetensors.index.json) lists, as one.

    Raises:
        UserError: a file is missing or damaged, or holds other tensors than the index says.
    """
    return ShardedWeights(path) if path.name.endswith(INDEX) else open_weights(path)


class ShardedWeights(Weights):
    """The files of an index, opened together."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, Weights] = {}
        with ExitStack() as opened:
            for name, keys in shards_of(path).items():
                file = opened.enter_context(open_weights(path.parent / name))
                if file.shapes.keys() != set(keys):
                    odd = min(file.shapes.keys() ^ set(keys))
                    raise UserError(f"{file.path} and {path} disagree about {odd}; take both from one checkpoint.")
                self._files |= dict.fromkeys(keys, file)
            self._opened = opened.pop_all()
        self.shapes = {key: file.shapes[key] for key, file in self._files.items()}

    def dtype(self, key: str) -> torch.dtype:
        return self._files[key].dtype(key)

    def tensor(self, key: str, region: tuple[slice, ...] = ()) -> Tensor:
        return self._files[key].tensor(key, region)

    def close(self) -> None:
        self._opened.close()
