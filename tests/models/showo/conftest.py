"""Tiny checkpoints of Show-o in the public layout."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reca_fast.config import ModelConfig
from reca_fast.memory import fill_model
from reca_fast.models.showo import ShowoModel
from reca_fast.models.showo.tiny import write_tiny_checkpoint


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that sees conditions through CLIP; not to be written to."""
    folder = tmp_path_factory.mktemp("showo") / "clip"
    write_tiny_checkpoint(folder, clip=True, layers=2)
    return folder


@pytest.fixture(scope="session")
def codes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that reads conditions as codes; not to be written to."""
    folder = tmp_path_factory.mktemp("showo") / "codes"
    write_tiny_checkpoint(folder, layers=2)
    return folder


@pytest.fixture
def own_copy(clip_folder: Path, tmp_path: Path) -> Path:
    """A folder with CLIP, to be broken."""
    return Path(shutil.copytree(clip_folder, tmp_path / "showo"))


@pytest.fixture
def opened() -> Callable[..., ShowoModel]:
    """opened(folder, ...): the model with its weights and encoders, in fp32 unless a precision is given."""

    def open_and_fill(folder: Path, **options: object) -> ShowoModel:
        usual = {"precision": "fp32", "freeze_und": False}
        model = ShowoModel.open(ModelConfig(path=str(folder), **usual | options))
        fill_model(model, torch.device("cpu"))
        return model

    return open_and_fill


def as_bin(path: Path, **more: torch.Tensor) -> None:
    """Put a file that torch.save wrote in the place of a safetensors file, with further tensors in it."""
    torch.save(load_file(path) | more, path.parent / "pytorch_model.bin")
    path.unlink()
