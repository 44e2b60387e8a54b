import pytest
import torch

from reca_fast.config import ModelConfig
from reca_fast.memory import fill_model
from reca_fast.models.openuni import OpenUniModel
from reca_fast.models.openuni.tiny import write_tiny_checkpoint

SIZES = {"layers": 2, "sana_layers": 2, "connector_layers": 1, "queries": 8}


@pytest.fixture(scope="session")
def write():
    """write(folder, stage=2, ...): a tiny checkpoint."""
    return lambda folder, **options: write_tiny_checkpoint(folder, **{**SIZES, **options})


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, write):
    """A stage 1 folder, InternVL3 in the layout of its remote code; not to be written to."""
    folder = tmp_path_factory.mktemp("openuni") / "tiny"
    write(folder)
    return folder


@pytest.fixture(scope="session")
def filled():
    """filled(folder): the model of a folder with its weights, in fp32."""

    def fill(folder, **options) -> OpenUniModel:
        model = OpenUniModel.open(ModelConfig(path=str(folder), precision="fp32", **options))
        fill_model(model, torch.device("cpu"))
        return model

    return fill
