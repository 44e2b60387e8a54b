"""The tiny VLMs are whole folders, the same bytes each time, and their VAE tells pictures apart."""

import hashlib
from pathlib import Path

import pytest
import torch

from reca_fast.models.auxiliary import AuxiliaryModel
from reca_fast.models.auxiliary.tiny import write_tiny_vlm
from reca_fast.models.auxiliary.vae import read_vae, vae_config
from reca_fast.models.bagel.tiny import VAE_FILE, TinyConfig
from reca_fast.models.parts.kl_vae import picture_moments, read_kl_vae

pytestmark = pytest.mark.usefixtures("one_thread")


def sums_of(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("flavour", ["llava", "qwen", "internvl"])
def test_a_tiny_folder_is_whole_and_the_same_each_time(flavour, tmp_path) -> None:
    for name in ("one", "two"):
        write_tiny_vlm(tmp_path / name, flavour, side=56, hidden_size=32)
    assert sums_of(tmp_path / "one") == sums_of(tmp_path / "two")
    said = AuxiliaryModel.check(tmp_path / "one")
    assert "a whole" in said and "a VAE" in said


def test_its_vae_is_the_demo_s_under_diffusers_names(tmp_path) -> None:
    write_tiny_vlm(tmp_path / "tiny", side=56, hidden_size=32)
    folder = tmp_path / "tiny" / "vae"
    picture = torch.randint(256, (16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = vae_config(folder)
    assert config == TinyConfig().vae
    ours, demo = read_vae(folder, config, "cpu"), read_kl_vae(VAE_FILE, config)
    assert torch.equal(picture_moments(ours, picture), picture_moments(demo, picture))
