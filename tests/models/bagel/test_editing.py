"""Editing: a picture and an instruction give a picture of the source's size, as the authors' inferencer draws it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import reca_fast.models
from reca_fast.config import ModelConfig, SamplingConfig
from reca_fast.errors import UserError
from reca_fast.memory import fill_model
from reca_fast.models import EditsPictures, editor, open_model
from reca_fast.models.bagel import BagelModel
from reca_fast.models.bagel.config import BAGEL_7B_MOT
from reca_fast.models.bagel.editing import edited_size, seen_size
from tests.models.toy import write_toy_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

TWO_STEPS = SamplingConfig(steps=2)


@pytest.fixture(scope="module")
def bagel(tiny_folder: Path) -> BagelModel:
    """The tiny model, with what a fresh one has at zero random instead."""
    model = BagelModel.open(ModelConfig(path=str(tiny_folder), precision="fp32"))
    fill_model(model, torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if ".gen." in name or name.startswith("llm2vae"):
                parameter.copy_(torch.randn(parameter.shape, generator=draw) / max(parameter.shape[-1], 16) ** 0.5)
                parameter.add_("norm" in name)
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
    ],
    ids=str,
)
def test_sizes_are_those_of_the_authors_transforms(size, edited, seen) -> None:
    """1024, 512 and 16 for the VAE; 980, 224 and 14 for the ViT, of the picture that is resized for the VAE."""
    assert edited_size(BAGEL_7B_MOT, size) == edited
    assert seen_size(BAGEL_7B_MOT, edited) == seen


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


def test_settings_that_editing_does_not_follow_are_named(bagel) -> None:
    with pytest.raises(UserError, match=r"sampling\.temperature is set, and this model draws without it"):
        bagel.edit([], [], SamplingConfig(temperature=0.5), [])
