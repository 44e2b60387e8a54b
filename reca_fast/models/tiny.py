"""Tiny models: checkpoint folders of a few megabytes with random weights, made from a fixed seed where a recipe names
one. Nothing has to be downloaded to see a run, a plan or an export of an architecture.
"""

import importlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from reca_fast.config import ModelConfig
from reca_fast.errors import writing

TINY = {
    "tiny-bagel": "reca_fast.models.bagel.tiny:write_tiny_bagel",
    "tiny-openuni": "reca_fast.models.openuni.tiny:write_tiny_openuni",
    "tiny-showo": "reca_fast.models.showo.tiny:write_tiny_showo",
    "tiny-showo-vq": "reca_fast.models.showo.tiny:write_tiny_showo_vq",
    "tiny-auxiliary": "reca_fast.models.auxiliary.tiny:write_tiny_auxiliary",
    "tiny-harmon": "reca_fast.models.harmon.tiny:write_tiny_harmon",
}
"""Name of a tiny model -> the module and the function that writes its checkpoint folder. A recipe has the same name."""


def is_tiny(options: ModelConfig) -> bool:
    """Whether the model is a tiny one whose weights are still to be made: it has a name of TINY, and no path."""
    return not options.path and options.name in TINY


def make_tiny(name: str, folder: Path) -> Path:
    """Write the checkpoint of the tiny model `name`, a key of TINY, unless the folder is there. Returns the folder.

    The folder appears when it is whole: it is written under another name beside its place, and renamed.

    Raises:
        UserError: it cannot be written.
    """
    if folder.is_dir():
        return folder
    module, _, function = TINY[name].partition(":")
    write: Callable[[Path], object] = getattr(importlib.import_module(module), function)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        begun = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            write(begun / folder.name)
            if not folder.is_dir():
                os.rename(begun / folder.name, folder)
        finally:
            shutil.rmtree(begun)
    return folder


def with_path(options: ModelConfig) -> ModelConfig:
    """The options of a tiny model with a path: a folder for temporary files, which goes when the process ends."""
    return replace(options, path=str(_temporary(options.name)))


@cache
def _temporary(name: str) -> Path:
    return make_tiny(name, Path(_kept_until_the_end().name) / name)


@cache
def _kept_until_the_end() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="reca-fast-")
