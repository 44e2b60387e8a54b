"""Bases of the other models: checkpoints of their own layouts, whose words and pictures are the toy world's."""

from dataclasses import replace

import pytest
import torch

from reca_fast.cli.options import parse_stages
from reca_fast.config import ModelConfig, RunConfig
from reca_fast.models import open_model
from reca_fast.proof.measuring import measure_folder
from reca_fast.proof.pretraining import others
from reca_fast.proof.pretraining.others import WRITERS
from reca_fast.proof.saying import caption_loss


@pytest.fixture(scope="module", params=WRITERS)
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(others, "STEPS", 2)  # of teaching Show-o's codes, which takes minutes
        WRITERS[request.param](folder, 0)
    return request.param, folder


def recipe(name: str) -> RunConfig:
    return parse_stages(RunConfig, "train", ["--config", f"proof/{name}"])[0][1]


def test_a_checkpoint_is_whole_and_knows_the_words(written) -> None:
    _, folder = written
    model = open_model(ModelConfig(path=str(folder)))
    type(model).check(folder)
    assert len(model.tokenize("a red circle left of a blue ring")) <= 9


def test_it_says_captions_and_draws_before_it_has_learned_to(written) -> None:
    """A loss near that of guessing among all words, and pictures of the toy world's size."""
    name, folder = written
    config = recipe(f"base-{name}")
    said = caption_loss(folder, config.model, config.data, count=4)
    assert 5 < said.value < 9 and said.count == 4
    asked = ["single", "reconstruction"]
    drawing = replace(config.sampling, steps=2)
    measured = measure_folder(folder, config.data, drawing, count=2, seed=0, subtasks=asked, options=config.model)
    assert [drawn.picture.shape for drawn in measured.drawn] == [torch.Size([32, 32, 3])] * 4
