"""The tiny OpenUni: a whole checkpoint, always the same one."""

import pytest
import torch

from reca_fast.models.openuni import OpenUniModel
from reca_fast.models.openuni.tiny import write_tiny_openuni

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_is_whole_and_the_same_numbers_every_time(tmp_path) -> None:
    for name in ("one", "two"):
        write_tiny_openuni(tmp_path / name)
        assert "a whole OpenUni checkpoint" in OpenUniModel.check(tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.safetensors"))
    assert len(files) == 3
    assert all((tmp_path / "one" / each).read_bytes() == (tmp_path / "two" / each).read_bytes() for each in files)
    own = [torch.load(tmp_path / name / "openuni_tiny.pth", weights_only=True) for name in ("one", "two")]
    assert own[0].keys() == own[1].keys() and all(torch.equal(own[0][key], own[1][key]) for key in own[0])
