"""What tests of BAGEL's checkpoint folder share."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint folder of one's own, to be broken."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "checkpoint"))
