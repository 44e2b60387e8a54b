"""A model without a checkpoint: the tensors that its file would hold, without numbers."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from reca_fast.config import ModelConfig
from reca_fast.memory import fill_model
from reca_fast.models.bagel.config import BAGEL_7B_MOT
from reca_fast.models.bagel.model import BagelModel


def test_the_published_model_is_filled_without_files() -> None:
    model = BagelModel.published("BAGEL-7B-MoT", ModelConfig())
    assert model is not None
    with FakeTensorMode():
        fill_model(model, torch.device("cpu"), empty=True)
    parts = (model.module, model.encoders.vit, model.encoders.vae)
    assert all(p.device.type == "cpu" for part in parts for p in part.parameters())
    trained = {p.dtype for p in model.module.parameters() if p.requires_grad}
    frozen = {p.dtype for p in model.module.parameters() if not p.requires_grad}
    assert trained == {torch.float32} and frozen == {torch.bfloat16}
    assert model.module.latent_pos_embed.shape == (64 * 64, BAGEL_7B_MOT.llm.hidden_size)
