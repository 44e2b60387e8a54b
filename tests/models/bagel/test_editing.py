"""Editing: a picture and an instruction give a picture of the source's size, as the authors' inferencer draws it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import reca_fast.models
from reca_fast.config import ModelConfig, SamplingConfig
from reca_fast.errors import UserError
from reca_fast.memory import fill_model
from reca_fast.models import EditsPictures, editor, open_model
from reca_fast.models.bagel import BagelModel
from reca_fast.models.bagel.config import BAGEL_7B_MOT
from reca_fast.models.bagel.editing import edited_size, seen_size
from reca_fast.randomness import generator
from tests.models.toy import write_toy_checkpoint
from tests.oracles.bagel_editing import BagelEditor, Settings

pytestmark = pytest.mark.usefixtures("one_thread")

TWO_STEPS = SamplingConfig(steps=2)


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with a generation side of its own: in a fresh one it is a copy, and all velocities are 0."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("editing") / "checkpoint"))
    weights, draw = load_file(folder / "ema.safetensors"), torch.Generator().manual_seed(0)
    for name in sorted(weights):
        if "moe_gen" in name or name.startswith("llm2vae"):
            random = torch.randn(weights[name].shape, generator=draw) / max(weights[name].shape[-1], 16) ** 0.5
            weights[name] = random + ("norm" in name)
    save_file(weights, folder / "ema.safetensors")
    return folder


@pytest.fixture(scope="module")
def bagel(folder: Path) -> BagelModel:
    model = BagelModel.open(ModelConfig(path=str(folder), precision="fp32"))
    fill_model(model, torch.device("cpu"))
    return model


def picture(width: int, height: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("size", "edited", "seen"),
    [
        ((1024, 1024), (1024, 1024), (980, 980)),
        ((1920, 1080), (1024, 576), (980, 546)),
        ((640, 427), (768, 512), (770, 518)),
        ((2000, 300), (1024, 160), (980, 154)),
        ((100, 100), (512, 512), (518, 518)),
        ((20, 244), (80, 1024), (70, 980)),
    ],
    ids=str,
)
def test_sizes_are_those_of_the_authors_transforms(size, edited, seen) -> None:
    """1024, 512 and 16 for the VAE; 980, 224 and 14 for the ViT, of the picture that is resized for the VAE."""
    assert edited_size(BAGEL_7B_MOT, size) == edited
    assert seen_size(BAGEL_7B_MOT, edited) == seen


EDITS: dict[str, tuple[tuple[int, int], Settings]] = {
    "as the authors set it": ((64, 64), Settings(2)),
    "wide": ((90, 40), Settings(3, cfg_img_scale=1.5)),
    "very tall": ((20, 300), Settings(2, timestep_shift=1.0)),
    "some steps are guided": ((30, 50), Settings(5, cfg_interval=(0.45, 0.9))),
    "global": ((64, 80), Settings(2, cfg_text_scale=9.0, cfg_renorm_type="global")),
    "channel, at least": ((64, 48), Settings(2, cfg_img_scale=3.0, cfg_renorm_type="channel", cfg_renorm_min=0.9)),
    "the instruction alone guides": ((64, 64), Settings(2, cfg_img_scale=1.0)),
    "unguided": ((64, 64), Settings(2, cfg_text_scale=1.0)),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_the_one_of_a_dense_mask_in_float64(name, bagel, folder, monkeypatch) -> None:
    """Sizes, tokens of the picture, the order of the context, guidance and steps, by a computation of its own."""
    size, settings = EDITS[name]
    source, text, seed = picture(*size), "make it red", 11
    decoded: list[Tensor] = []
    decode = bagel.encoders.vae.decode

    def recorded(z: Tensor) -> Tensor:
        decoded.append(z)
        return decode(z)

    monkeypatch.setattr(bagel.encoders.vae, "decode", recorded)
    sampling = SamplingConfig(
        steps=settings.evaluations,
        timestep_shift=settings.timestep_shift,
        guidance=settings.cfg_text_scale,
        image_guidance=settings.cfg_img_scale if settings.cfg_text_scale > 1 else None,
        guidance_interval=settings.cfg_interval,
        guidance_renorm=settings.cfg_renorm_type,
        guidance_renorm_min=settings.cfg_renorm_min,
    )
    (got,) = bagel.edit([source], [text], sampling, [seed])

    t = bagel.tokenizer
    oracle = BagelEditor(folder, (t.bos, t.eos, t.start_of_image, t.end_of_image))
    height, width, _ = got.shape
    normal = torch.randn(4, height // 4, width // 4, generator=generator("edited", seed))
    noise = torch.randn(height * width // 64, 16, generator=torch.Generator().manual_seed(seed))
    velocities, tokens, wanted = oracle.edit(source.numpy(), bagel.tokenize(text), settings, noise, normal)
    assert got.shape == wanted.shape and min(v.abs().mean() for v in velocities) > 0.1
    found = oracle.tokens(decoded[0][0].double())
    assert (found - tokens).abs().max() <= 1e-4 * tokens.abs().max()
    assert np.abs(got.numpy().astype(int) - wanted).max() <= 1


def test_an_edit_has_its_own_picture_instruction_and_seed_alone(bagel) -> None:
    """To the last bit, whatever is edited beside it, and of the size that was foretold."""
    pictures, texts = [picture(64, 64), picture(90, 40, 1), picture(20, 60, 2)], ["make it red", "a cat", "turn it"]
    together = bagel.edit(pictures, texts, TWO_STEPS, [3, 4, 5])
    assert [(p.shape[1], p.shape[0]) for p in together] == [
        bagel.edited_size(s) for s in [(64, 64), (90, 40), (20, 60)]
    ]
    (alone,) = bagel.edit(pictures[1:2], texts[1:2], TWO_STEPS, [4])
    assert torch.equal(alone, together[1])
    for other in (
        bagel.edit([picture(90, 40, 7)], texts[1:2], TWO_STEPS, [4]),
        bagel.edit(pictures[1:2], ["a dog"], TWO_STEPS, [4]),
        bagel.edit(pictures[1:2], texts[1:2], TWO_STEPS, [5]),
    ):
        assert not torch.equal(other[0], alone)


def test_a_model_that_edits_no_pictures_is_named_with_those_that_do(bagel, tmp_path, monkeypatch) -> None:
    assert editor(bagel) is bagel and isinstance(bagel, EditsPictures)
    monkeypatch.setitem(reca_fast.models.MODELS, "toy", "tests.models.toy:ToyModel")
    write_toy_checkpoint(tmp_path / "toy")
    with pytest.raises(UserError, match=r"prompts alone; those that change a given picture are: bagel\. Leave the"):
        editor(open_model(ModelConfig(path=str(tmp_path / "toy"))))


def test_what_is_not_set_is_as_the_authors_app_sets_it(bagel) -> None:
    authors = Settings()
    spelled = SamplingConfig(
        *(2, authors.timestep_shift, authors.cfg_text_scale),
        image_guidance=authors.cfg_img_scale,
        guidance_interval=authors.cfg_interval,
        guidance_renorm="text_channel",
        guidance_renorm_min=authors.cfg_renorm_min,
    )
    drawn = [bagel.edit([picture(64, 64)], ["make it red"], s, [1])[0] for s in (TWO_STEPS, spelled)]
    assert torch.equal(*drawn) and SamplingConfig().filled(BagelModel.EDITING).steps == authors.evaluations


def test_settings_that_editing_does_not_follow_are_named(bagel) -> None:
    with pytest.raises(UserError, match=r"sampling\.temperature is set, and this model draws without it"):
        bagel.edit([], [], SamplingConfig(temperature=0.5), [])
