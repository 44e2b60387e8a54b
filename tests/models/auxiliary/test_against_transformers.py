"""Without its decoder, the model is the VLM: the losses and gradients are those of transformers' own class."""

from typing import Any

import pytest
import torch

from reca_fast.config import DataConfig, ResizeConfig
from reca_fast.models.auxiliary import AuxiliaryModel
from reca_fast.sample import I2T, RECA, Sample

from .conftest import FLAVOURS, SQUARES, collated, sample_of

pytestmark = pytest.mark.usefixtures("one_thread")

TALK = (("What is this?", "A red cat."), ("And behind it?", "A wall, I think."))
WIDE = DataConfig(condition_resize=ResizeConfig(112, 28, 28), target_resize=ResizeConfig(32, 16, 8))


def theirs(model: AuxiliaryModel) -> Any:
    """transformers' class with the same weights."""
    import transformers

    cls = getattr(transformers, model.vlm.family.CLASS)
    return cls.from_pretrained(model.folder, dtype=torch.float32, attn_implementation="eager")


def processed(model: AuxiliaryModel, sample: Sample) -> dict[str, torch.Tensor]:
    """The condition by transformers' own processor of pictures."""
    from transformers import CLIPImageProcessor, Qwen2VLImageProcessor

    cls: Any = Qwen2VLImageProcessor if "Qwen" in model.vlm.family.CLASS else CLIPImageProcessor
    mean, deviation = model.vlm.family.COLOURS
    made = cls(do_resize=False, do_center_crop=False, image_mean=mean, image_std=deviation)
    return dict(made(sample.condition.permute(2, 0, 1), return_tensors="pt", input_data_format="channels_first"))


def their_loss(model: AuxiliaryModel, whole: Any, sample: Sample, data: DataConfig) -> torch.Tensor:
    """Sum of the answers' cross-entropies, from `labels` and without any pack."""
    batch = collated(model, sample, data=data)
    labels = torch.full_like(batch.ids, -100)
    labels[batch.label_rows + 1] = batch.labels
    seen = processed(model, sample)
    if "image_grid_thw" in seen:
        seen["mm_token_type_ids"] = (batch.ids == model.vlm.family.image_token).long()[None]
    out = whole(input_ids=batch.ids[None], labels=labels[None], attention_mask=torch.ones_like(batch.ids)[None], **seen)
    return out.loss * len(batch.labels)


@pytest.mark.parametrize("flavour", (*FLAVOURS, "qwen2"))
def test_the_text_loss_and_all_its_gradients_are_those_of_transformers(flavour, opened) -> None:
    """A pack of two conversations and a picture that is only reconstructed, against two calls of their class. Lambda is
    0 here: what a reconstruction adds to the loss is left out, and nothing else of it shows.
    """
    model = opened(flavour)
    data = WIDE if "qwen" in flavour else SQUARES
    size = (100, 60)
    talks = [
        sample_of(model, (I2T, RECA), *TALK, size=size, data=data, seed=1),
        sample_of(model, (I2T,), ("", "A dog."), data=data, seed=2),
    ]
    drawn = sample_of(model, (RECA,), data=data, seed=3)
    whole = theirs(model)
    expected = sum(their_loss(model, whole, sample, data) for sample in talks)
    expected.backward()

    sums = model.loss_sums(model.encode(collated(model, talks[0], drawn, talks[1], data=data)))
    assert sums[I2T].item() == pytest.approx(expected.item(), rel=1e-5)
    (sums[I2T] + 0 * sums[RECA]).backward()
    language, projector = whole.model.language_model, whole.model.get_submodule(model.vlm.family.PROJECTOR)
    wanted = {f"language.{name}": p.grad for name, p in language.named_parameters()}
    wanted |= {f"language.projector.{name}": p.grad for name, p in projector.named_parameters()}
    wanted["language.lm_head.weight"] = whole.lm_head.weight.grad
    for name, parameter in model.module.named_parameters():
        if name.startswith("decoder."):
            assert not parameter.grad.any(), name
        else:
            scale = wanted[name].abs().max()
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=2e-5 * float(scale), msg=name)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_an_export_is_loaded_by_from_pretrained_with_the_trained_weights(flavour, opened, tmp_path) -> None:
    model = opened(flavour)
    trained = {name: p.detach() + 1 for name, p in model.module.named_parameters()}
    left = model.export(tmp_path / "export", trained, None)
    assert left == [] and not any("decoder" in path.name for path in (tmp_path / "export").rglob("*"))
    before = theirs(model).state_dict()
    model.folder = tmp_path / "export"
    after, same = theirs(model).state_dict(), []
    for name, tensor in before.items():
        is_tower = model.vlm.family.TOWER in name and model.vlm.family.PROJECTOR not in name
        assert torch.equal(after[name], tensor if is_tower else tensor + 1), name
        same.append(is_tower)
    assert any(same) and not all(same)


def test_a_narrower_export_says_so(opened, tmp_path) -> None:
    model = opened("qwen")
    model.export(tmp_path / "export", {}, torch.bfloat16)
    import transformers

    narrow = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "export")
    assert narrow.dtype == torch.bfloat16
