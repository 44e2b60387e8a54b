"""Recomputing activations changes what is kept, not what comes out."""

import pytest
import torch

from reca_fast.config import ModelConfig
from reca_fast.flow import Sample
from reca_fast.models import open_adapter


def _step(folder, *, recompute: bool, freeze_und: bool) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss, gradients and bytes kept for the backward pass of one small batch."""
    options = ModelConfig(str(folder), precision="fp32", recompute=recompute, freeze_und=freeze_und)
    adapter = open_adapter(options)
    adapter.load(torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    understanding = torch.randint(0, 256, (56, 56, 3), generator=draw, dtype=torch.uint8)
    target = torch.randint(0, 256, (64, 64, 3), generator=draw, dtype=torch.uint8)
    batch = adapter.collate([Sample(str(i), "reca", understanding, target, (5, 6, 7)) for i in range(2)])

    parameters = {p.untyped_storage().data_ptr() for p in adapter.module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = adapter.loss_sums(batch, torch.Generator().manual_seed(1))["reca"]
    loss.backward()
    gradients = {name: p.grad for name, p in adapter.module.named_parameters() if p.grad is not None}
    return loss.item(), gradients, sum(kept.values())


@pytest.mark.parametrize("freeze_und", [True, False])
def test_same_loss_and_gradients_with_less_kept(tiny_folder, freeze_und):
    loss, gradients, kept = _step(tiny_folder, recompute=False, freeze_und=freeze_und)
    again, regained, kept_then = _step(tiny_folder, recompute=True, freeze_und=freeze_und)
    assert again == loss
    assert regained.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(regained[name], gradient, rtol=0, atol=0)
    assert kept_then < kept / 2
