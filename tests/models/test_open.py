"""Opening a checkpoint folder: mistakes that no model meets by itself."""

import pytest

import reca_fast.models
from reca_fast.config import ModelConfig
from reca_fast.errors import UserError
from reca_fast.models import MODELS, TINY, open_model
from tests.models.toy import write_toy_checkpoint


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A checkpoint folder of a model beside those that ship."""
    monkeypatch.setitem(reca_fast.models.MODELS, "toy", "tests.models.toy:ToyModel")
    write_toy_checkpoint(tmp_path / "toy")
    return tmp_path / "toy"


@pytest.mark.parametrize("name", [*TINY, "BAGEL-7B-MoT"])
def test_the_checkpoint_of_another_model_than_the_recipe_s_is_refused(name, toy) -> None:
    with pytest.raises(
        UserError, match=rf"toy is a checkpoint of another model: it is one of toy, and model.name={name} is one of"
    ):
        open_model(ModelConfig(path=str(toy), name=name))


@pytest.mark.parametrize("name", ["", "my own model", "toy-1m"])
def test_a_name_of_the_same_model_or_of_none_is_not(name, toy) -> None:
    assert open_model(ModelConfig(path=str(toy), name=name)).module is not None


def test_every_tiny_model_belongs_to_an_architecture() -> None:
    assert {function.split(".")[2] for function in TINY.values()} <= MODELS.keys()
