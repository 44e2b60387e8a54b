"""Weight decay acts on matrices alone."""

import pytest
import torch
from torch import nn

from reca_fast.config import ModelConfig
from reca_fast.models import open_model
from reca_fast.optim import parameter_groups
from reca_fast.train.state import trained


def test_a_group_decays_and_the_other_does_not():
    linear = nn.Linear(3, 2)
    decaying, other = parameter_groups(dict(linear.named_parameters()), lambda name: name == "weight", 0.1)
    assert decaying["params"] == [linear.weight] and decaying["weight_decay"] == 0.1
    assert other["params"] == [linear.bias] and other["weight_decay"] == 0.0


def test_an_empty_group_is_left_out():
    parameters = {"weight": nn.Parameter(torch.ones(2))}
    assert [len(group["params"]) for group in parameter_groups(parameters, lambda name: True, 0.1)] == [1]


@pytest.mark.parametrize("freeze_und", [True, False])
def test_in_bagel_every_matrix_decays_but_the_token_embedding(tiny_folder, freeze_und):
    model = open_model(ModelConfig(str(tiny_folder), freeze_und=freeze_und))
    parameters = trained(model.module)
    decaying = {name for name in parameters if model.decays(name)}
    assert decaying == {name for name, p in parameters.items() if p.ndim == 2 and name != "embed_tokens.weight"}
    assert any(name.startswith("time_embedder.") for name in decaying)
