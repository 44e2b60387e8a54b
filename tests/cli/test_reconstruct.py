"""`reca-fast reconstruct`: a grid of pictures and how close each came."""

import re

import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_reconstruct_writes_a_grid_and_tells_how_close_it_came(tiny_folder, pictures, reca_fast, tmp_path) -> None:
    usual = ["--config", "tiny-bagel", "--device", "cpu", "--model.path", tiny_folder, "--sampling.steps", 2]
    usual += ["--data.target_resize.min_size", 16, "--count", 2, "--out", tmp_path / "grid.png"]
    said = reca_fast("reconstruct", pictures, *usual)
    assert said.code == 0, said.err
    assert (
        len(re.findall(r"^\d\d\.png: [\d.]+ dB$", said.out, re.MULTILINE)) == 2
        and Image.open(tmp_path / "grid.png").size
    )
    each = ["--pictures", tmp_path / "each"]
    assert reca_fast("reconstruct", pictures, *usual, "--out", tmp_path / "grid.odd", *each).code == 0
    folders = ["--pictures", tmp_path / "each" / "drawn", "--reference", tmp_path / "each" / "original"]
    scored = reca_fast("evaluate", *folders, "--out", tmp_path / "report.json")
    assert scored.code == 0 and re.search(r"^psnr .* 2 pictures", scored.out, re.MULTILINE), scored
    assert Image.open(tmp_path / "grid.odd").format == "PNG"
    fewer = reca_fast("reconstruct", pictures, *usual, *each, "--count", 1)
    assert "0001.png is there already, and would be compared too" in fewer.sentence
    assert f"{tmp_path} is a folder" in reca_fast("reconstruct", pictures, *usual, "--out", tmp_path).sentence
    for count in (0, -1):
        assert (
            f"count={count}: it must be at least 1"
            in reca_fast("reconstruct", pictures, *usual, "--count", count).sentence
        )
    assert "/nowhere" in reca_fast("reconstruct", "/nowhere", *usual).sentence
    (tmp_path / "file").write_text("")
    assert (
        f"{tmp_path}/file/x.png cannot be written"
        in reca_fast("reconstruct", pictures, *usual, "--out", tmp_path / "file" / "x.png").sentence
    )
