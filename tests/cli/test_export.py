"""`reca-fast export` finds the base that a run started from."""

from dataclasses import asdict

import pytest
import torch

from reca_fast.checkpoints import CheckpointStore
from reca_fast.train.saved import SavedState

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_base_that_has_moved(reca_fast, tmp_path) -> None:
    state = SavedState("0", 0, base="/nowhere/base", content={}, config={}, lanes={}, generators=[])
    CheckpointStore(tmp_path / "checkpoints").save(0, {"model": {"x": torch.ones(1)}}, asdict(state))
    said = reca_fast("export", tmp_path, tmp_path / "out").sentence
    assert "/nowhere/base, from which the run started, does not exist; set --base" in said
    said = reca_fast("export", tmp_path, tmp_path / "out", "--base", "nope").sentence
    assert "folder nope does not exist; set --base" in said
