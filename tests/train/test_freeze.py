"""Parts of a model that training leaves as they are."""

import pytest
import torch
from torch import nn

from reca_fast.errors import UserError
from reca_fast.train.freeze import freeze


def parts() -> nn.Module:
    """With the names queries, blocks.1 and blocks.10."""
    module = nn.Module()
    module.queries = nn.Parameter(torch.zeros(2))
    module.blocks = nn.ModuleDict({"1": nn.Linear(2, 2), "10": nn.Linear(2, 2)})
    return module


def test_a_name_stands_for_all_that_begins_with_it_and_a_dot() -> None:
    module = parts()
    freeze(module, ["queries", "blocks.1"])
    left = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert left == ["blocks.10.weight", "blocks.10.bias"]


def test_no_part_leaves_everything_as_the_model_has_it() -> None:
    module = parts()
    freeze(module, [])
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_mistakes_are_told_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"model\.freeze=query: .* its parts are blocks, queries"):
        freeze(parts(), ["query"])
    with pytest.raises(UserError, match="leaves nothing to be trained"):
        freeze(parts(), ["queries", "blocks"])
