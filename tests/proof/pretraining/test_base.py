"""The base of the toy world can be made again from its command: here a much shortened one."""

import shutil
from pathlib import Path

import pytest

from reca_fast.errors import UserError
from reca_fast.models import recognised
from reca_fast.proof.pretraining.__main__ import begin, make_base


@pytest.mark.slow
def test_a_shortened_base_is_made_again_to_the_last_bit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Stopped after the understanding was taught, and gone on with."""
    numbers = {"seed": 3, "lessons": 2, "steps": 2, "pictures": 64}
    assert make_base(tmp_path / "one", **numbers) == 0
    said = capfd.readouterr().out
    assert "a probe of texts reads" in said and "openuni_toy.safetensors" in said
    shutil.copytree(tmp_path / "one" / "taught", tmp_path / "other" / "taught")
    (tmp_path / "other" / "taught" / "openuni_toy.safetensors").unlink()
    assert make_base(tmp_path / "other", **numbers) == 0
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one" / "base").rglob("*") if path.is_file()]
    assert len(files) == 10
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes(), file
    base = tmp_path / "one" / "base"
    model = recognised(base)
    assert model is not None and "a whole OpenUni checkpoint" in model.check(base)


def test_a_base_of_another_seed_does_not_go_on_with_what_is_there(tmp_path: Path) -> None:
    begin(tmp_path / "base", {"seed": 0})
    begin(tmp_path / "base", {"seed": 0})
    with pytest.raises(UserError, match=r'holds a base of other options \({"seed": 0}\); name another --out'):
        begin(tmp_path / "base", {"seed": 1})
