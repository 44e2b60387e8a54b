"""LoRA on a VLM: adapters on the language model's layers; the decoder, which has nothing to adapt, is trained whole."""

import pytest
import torch

from reca_fast.config import AuxiliaryConfig, LoraConfig, MemoryConfig, ModelConfig
from reca_fast.memory import apply_levers, fill_model
from reca_fast.memory.adapters import merged
from reca_fast.models.auxiliary import AuxiliaryModel
from reca_fast.sample import I2T, RECA

from .conftest import collated, sample_of

pytestmark = pytest.mark.usefixtures("one_thread")
LORA = LoraConfig(rank=4)


def test_adapters_and_decoder_learn_and_the_export_is_the_vlm_with_them_merged(opened, folders, tmp_path) -> None:
    options = ModelConfig(
        path=str(folders["llava"]), precision="fp32", freeze_und=False, auxiliary=AuxiliaryConfig(0.05, "pixel")
    )
    model = AuxiliaryModel.open(options)
    apply_levers(model.module, model.blocks(), MemoryConfig(), LORA)
    fill_model(model, torch.device("cpu"))
    plain = opened("llava", target="pixel")
    sample = sample_of(plain, (RECA, I2T), ("What?", "A dog."))
    batch = model.encode(collated(model, sample))
    at_first = {task: total.item() for task, total in model.loss_sums(batch).items()}
    assert at_first == pytest.approx({task: total.item() for task, total in plain.loss_sums(batch).items()})

    trained = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith("decoder.") for name in trained)
    assert sum("lora_A" in name for name in trained) == 2 * 7
    assert sum(name.startswith("decoder.") for name in trained) == len(list(model.module.decoder.parameters()))
    optimizer = torch.optim.Adam(trained.values(), lr=1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        sums = model.loss_sums(batch)
        (sums[I2T] / batch.counts[I2T] + sums[RECA] / batch.counts[RECA]).backward()
        optimizer.step()
    assert all(total.item() < at_first[task] for task, total in model.loss_sums(batch).items())

    plain.export(tmp_path / "export", merged({name: p.detach() for name, p in trained.items()}, LORA), None)
    again = opened("llava", target="pixel", path=str(tmp_path / "export"))
    assert again.loss_sums(batch)[I2T].item() == pytest.approx(model.loss_sums(batch)[I2T].item(), rel=1e-4)
