"""Parameters of a block are one group, and weight decay acts on matrices alone."""

import pytest
from torch import nn

from reca_fast.config import ModelConfig
from reca_fast.models import open_model
from reca_fast.optim import group_by_block
from reca_fast.train.state import trained


def test_a_group_for_each_block_and_one_for_the_rest():
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 3))
    trained = {name: p for name, p in module.named_parameters() if not name.startswith("1.")}
    first, frozen, rest = group_by_block(trained, [module[2], module[1]], lambda name: name.endswith("weight"))
    assert first.names == ("2.weight", "2.bias") and first.parameters == (module[2].weight, module[2].bias)
    assert first.decays == (True, False)
    assert frozen.names == ()
    assert rest.names == ("0.weight", "0.bias", "3.weight", "3.bias")


@pytest.mark.parametrize("freeze_und", [True, False])
def test_in_bagel_every_matrix_decays_but_the_token_embedding(tiny_folder, freeze_und):
    model = open_model(ModelConfig(str(tiny_folder), freeze_und=freeze_und))
    parameters = trained(model.module)
    decaying = {name for name in parameters if model.decays(name)}
    assert decaying == {name for name, p in parameters.items() if p.ndim == 2 and name != "embed_tokens.weight"}
    assert any(name.startswith("time_embedder.") for name in decaying)
