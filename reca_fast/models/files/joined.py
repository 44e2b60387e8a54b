"""Several opened files of weights as one, their tensors under other keys: how a model is read whose parts were
published one by one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from reca_fast.errors import UserError
from reca_fast.schema import read_json

from .weights import Weights


class Piece(NamedTuple):
    """A tensor in an opened file."""

    weights: Weights
    key: str


class JoinedWeights(Weights):
    """What several files hold.

    Args:
        path: the folder that stands for all of them in messages.
        sources: key -> the tensor in its file, or several that are put together along their first dimension. The files
            are closed with this.
    """

    def __init__(self, path: Path, sources: Mapping[str, Sequence[Piece]]) -> None:
        self.path = path
        self.sources = sources
        self.shapes = {key: _shape(pieces) for key, pieces in sources.items()}

    def dtype(self, key: str) -> torch.dtype:
        first = self.sources[key][0]
        return first.weights.dtype(first.key)

    def tensor(self, key: str, region: tuple[slice, ...] = ()) -> Tensor:
        pieces = self.sources[key]
        if len(pieces) == 1:
            return pieces[0].weights.tensor(pieces[0].key, region)
        whole = torch.cat([each.weights.tensor(each.key) for each in pieces])
        return whole[region or ...]

    def close(self) -> None:
        for weights in {id(each.weights): each.weights for pieces in self.sources.values() for each in pieces}.values():
            weights.close()


def _shape(pieces: Sequence[Piece]) -> tuple[int, ...]:
    first, *others = [piece.weights.shapes[piece.key] for piece in pieces]
    return (first[0] + sum(shape[0] for shape in others), *first[1:]) if others else first


def hub_files(folder: Path, name: str) -> list[Path]:
    """The files of weights of a folder as the hub has it: NAME.safetensors, the shards that NAME.safetensors.index.json
    lists, or the only NAME.VARIANT.safetensors.

    Args:
        name: "model" for transformers, "diffusion_pytorch_model" for diffusers.

    Raises:
        UserError: there is none, there are several variants, or a shard is missing.
    """
    index, whole = folder / f"{name}.safetensors.index.json", folder / f"{name}.safetensors"
    if whole.exists():
        return [whole]
    if index.exists():
        listed = read_json(index)
        shards = listed.get("weight_map") if isinstance(listed, dict) else None
        if not isinstance(shards, dict) or not all(
            isinstance(each, str) and "/" not in each for each in shards.values()
        ):
            raise UserError(f"{index} does not list the shards of a model; copy it from the hub again.")
        files = [folder / each for each in sorted(set(shards.values()))]
        if missing := [path.name for path in files if not path.exists()]:
            raise UserError(f"{folder} lacks {', '.join(missing[:3])}, which {index.name} lists; download it again.")
        return files
    variants = sorted(folder.glob(f"{name}.*.safetensors"))
    if len(variants) != 1:
        found = f"several variants ({', '.join(path.name for path in variants)})" if variants else "no weights"
        raise UserError(f"{folder} holds {found}; download {whole.name} from the hub, or its shards with their index.")
    return variants
