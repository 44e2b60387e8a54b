"""The files of a Harmon checkpoint folder: which ones they are, whether they fit, and filling the model from them."""

import os
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import nn

from reca_fast.errors import UserError
from reca_fast.models.files import Weights, check_fit
from reca_fast.models.files.fill import ORIGIN
from reca_fast.models.files.sharded import open_sharded
from reca_fast.schema import shown

from .names import EMBEDDING, HEAD, NETWORK_NAMES, VAE_PREFIX

VAE_FILE = "kl16.ckpt"
HF_FILES = ("model.safetensors", "model.safetensors.index.json")
"""The weights of a folder in the layout of transformers, which hold the VAE too."""
AUTHORS = "harmon*.pth"
"""What the authors call the others, in letters of any case; where there is none, any .pth may be one."""
SUFFIXES = (".pth", ".pt", ".safetensors", ".safetensors.index.json")


def found_weights(folder: Path) -> list[str]:
    """The names of the files in a folder that may be a Harmon's weights."""
    names = sorted(path.name for path in folder.glob("*.pth"))
    authors = [name for name in names if is_authors(name)]
    return (authors or names) + [name for name in HF_FILES if os.path.lexists(folder / name)]


def is_authors(name: str) -> bool:
    """Whether a file is called as the authors call their weights."""
    return fnmatch(name.lower(), AUTHORS)


def weights_file(folder: Path, choice: str = "auto") -> Path:
    """The file that the weights of a checkpoint folder are read from.

    Args:
        folder: the checkpoint folder.
        choice: a file's name in the folder (or a path of its own); auto takes the only one there is.

    Raises:
        UserError: auto finds several or none, or `choice` is no file of weights.
    """
    if choice != "auto":
        if not choice.endswith(SUFFIXES) or "\0" in choice:
            raise UserError(
                f"model.weights={shown(choice)}: a Harmon's weights are read from a .pth file, a .safetensors file or "
                "the index of several of these."
            )
        return folder / choice
    found = found_weights(folder)
    if len(found) > 1:
        raise UserError(
            f"{folder} holds {' and '.join(found)}: name the one to read with --model.weights (verify takes --weights, "
            "export --base_weights)."
        )
    if not found:
        raise UserError(
            f"{folder} holds no weights of a Harmon: neither {AUTHORS} nor {' nor '.join(HF_FILES)}; to read another "
            "file, name it with --model.weights."
        )
    return folder / found[0]


def holds_mar(path: Path) -> bool:
    """Whether a file of weights has tensors of MAR, which no other architecture here has."""
    with open_sharded(path) as stored:
        return any(key.startswith("mar.") for key in stored.shapes)


def shapes_of(path: Path) -> Mapping[str, tuple[int, ...]]:
    """Key -> shape of every tensor in a Harmon's file of weights.

    Raises:
        UserError: the file is missing or damaged, or holds another model.
    """
    with open_sharded(path) as stored:
        shapes = dict(stored.shapes)
    if not any(key.startswith("mar.") for key in shapes):
        raise UserError(f"{path} is no Harmon's: it holds no tensor mar.*; take another file.")
    return shapes


def holds_vae(path: Path) -> bool:
    """Whether a file of weights holds the VAE too."""
    with open_sharded(path) as stored:
        return any(key.startswith(VAE_PREFIX) for key in stored.shapes)


def vae_place(folder: Path, weights: Path) -> tuple[Path, str]:
    """The file that holds the VAE, and the prefix of its tensors there: the file of weights itself, or kl16.ckpt.

    Raises:
        UserError: neither does.
    """
    if holds_vae(weights):
        return weights, VAE_PREFIX
    if not (folder / VAE_FILE).exists():
        raise UserError(f"{folder / VAE_FILE} is missing, the VAE: {weights.name} holds none; copy it from the hub.")
    return folder / VAE_FILE, ""


def check_weights(module: nn.Module, weights: Weights) -> dict[str, str]:
    """Refuse a file whose keys or shapes differ from the model's. It may hold the head, which is the embedding.

    Returns:
        Key in the file -> name in the model, of every tensor that `fill` reads.

    Raises:
        UserError: naming the tensors.
    """
    read = check_fit(weights, (module, NETWORK_NAMES), origin=f"{ORIGIN} (harmon_1.5b.pth or harmon_0.5b.pth)")
    wanted = weights.shapes[EMBEDDING]
    if weights.shapes.get(HEAD, wanted) != wanted:
        raise UserError(
            f"{weights.path} holds {HEAD} {list(weights.shapes[HEAD])} beside an embedding {list(wanted)}, but "
            "Harmon's head is its embedding; take another file."
        )
    return read


def check_head(weights: Weights) -> None:
    """Refuse a file whose head is not its embedding.

    Raises:
        UserError: naming the file.
    """
    if HEAD in weights.shapes and not torch.equal(weights.tensor(HEAD), weights.tensor(EMBEDDING)):
        raise UserError(
            f"{weights.path}: {HEAD} differs from {EMBEDDING}, but Harmon's head is its embedding; it was trained by "
            "code that does not know this."
        )
