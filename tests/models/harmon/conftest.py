"""Tiny Harmons that the tests of this folder share."""

from pathlib import Path

import pytest

from reca_fast.models.harmon.tiny import write_tiny_checkpoint


@pytest.fixture(autouse=True)
def _(one_thread):
    """Tiny tensors."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder in the authors' layout, harmon_tiny.pth and kl16.ckpt; not to be written to."""
    folder = tmp_path_factory.mktemp("harmon") / "authors"
    write_tiny_checkpoint(folder, hidden_size=48, intermediate_size=64, mar_width=32)
    return folder


@pytest.fixture(scope="session")
def tiny_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in the layout of transformers, one model.safetensors; not to be written to."""
    folder = tmp_path_factory.mktemp("harmon") / "transformers"
    write_tiny_checkpoint(folder, layout="transformers", hidden_size=48, intermediate_size=64, mar_width=32)
    return folder
