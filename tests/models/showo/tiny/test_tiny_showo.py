"""The tiny checkpoint: the public files and names, strictly loaded, and codes that say something of a picture."""

from pathlib import Path

import numpy as np
import pytest
import torch

from reca_fast.models.bagel.tiny.photos import crops
from reca_fast.models.files import stored_shapes
from reca_fast.models.parts.clip_vision import check_clip_vision
from reca_fast.models.parts.magvit import check_magvit, picture_codes, read_magvit
from reca_fast.models.showo.tiny import TinyConfig, write_tiny_checkpoint
from reca_fast.models.showo.tokenizer import open_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder, clip=True)
    return folder


def public_shapes(c: TinyConfig) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a Show-o's own file, by formula."""
    d, wide, head = c.hidden_size, c.intermediate_size, c.hidden_size // c.heads
    layer: dict[str, tuple[int, ...]] = {"mlp.fc1": (wide, d), "mlp.fc2": (d, wide), "input_layernorm": (d,)}
    layer |= {f"self_attn.{part}": (d, d) for part in ("q_proj", "k_proj", "v_proj", "dense")}
    layer |= {f"self_attn.{part}_layernorm": (head,) for part in "qk"}
    biased = {f"showo.model.layers.{i}.{name}": shape for i in range(c.layers) for name, shape in layer.items()}
    biased |= {"showo.model.final_layernorm": (d,), "showo.lm_head": (c.vocab_size, d)}
    if c.clip:
        biased |= {"mm_projector.0": (d, c.tower.hidden_size), "mm_projector.2": (d, d)}
    shapes = {f"{name}.weight": shape for name, shape in biased.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in biased.items()}
    return shapes | {"showo.model.embed_tokens.weight": (c.vocab_size, d)}


@pytest.mark.parametrize(("clip", "tensors"), [(False, 437), (True, 441)])
def test_the_formula_counts_the_public_model(clip, tensors) -> None:
    public = TinyConfig(clip=clip, hidden_size=2048, intermediate_size=8192, layers=24, heads=32)
    assert len(public_shapes(public)) == tensors


@pytest.mark.parametrize("clip", [False, True])
def test_it_holds_the_public_files(clip, folder, tmp_path) -> None:
    config = TinyConfig(clip=clip)
    if not clip:
        folder = tmp_path
        write_tiny_checkpoint(folder)
    assert stored_shapes(folder / "pytorch_model.safetensors") == public_shapes(config)
    assert check_magvit(folder / "magvitv2") == config.magvit
    assert (folder / "clip").exists() == clip
    if clip:
        assert check_clip_vision(folder / "clip") == config.tower
    tokenizer = open_tokenizer(folder, config.text_vocab, config.magvit.codebook_size)
    assert tokenizer.vocabulary.size == config.vocab_size


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path) -> None:
    write_tiny_checkpoint(tmp_path / "same", clip=True)
    write_tiny_checkpoint(tmp_path / "other", clip=True, seed=1)
    for path in sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()):
        assert (tmp_path / "same" / path).read_bytes() == (folder / path).read_bytes(), path
        differs = (tmp_path / "other" / path).read_bytes() != (folder / path).read_bytes()
        assert differs == (path.suffix == ".safetensors"), path


def test_its_codes_tell_pictures_apart(folder) -> None:
    """Each bit is set in about half of the cells, and many codes occur."""
    magvit = read_magvit(folder / "magvitv2", with_decoder=False)
    codes = torch.stack([picture_codes(magvit, torch.from_numpy(np.array(crop))) for _, crop in crops("train", 24)])
    shares = torch.stack([((codes >> bit) & 1).float().mean() for bit in range(8)])
    assert shares.min() > 0.3 and shares.max() < 0.7
    assert codes.shape == (24, 8, 8) and len(codes.unique()) > 64
