"""What the decoder learns and draws, which part of a conversation is computed, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from reca_fast.config import AuxiliaryConfig, DataConfig, ModelConfig, ResizeConfig, SamplingConfig, TaskWeights
from reca_fast.data.records import BadRecord
from reca_fast.errors import UserError
from reca_fast.memory import fill_model
from reca_fast.models import recognised
from reca_fast.models.auxiliary import AuxiliaryModel
from reca_fast.models.auxiliary.vae import vae_config
from reca_fast.models.files import uniform
from reca_fast.sample import I2T, RECA, T2I, Sample, Turn

from .conftest import FLAVOURS, SQUARES, collated, picture, sample_of

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.mark.parametrize("target", ["latent", "pixel"])
def test_a_new_decoder_s_loss_is_the_mean_square_of_what_it_has_to_say(target, opened) -> None:
    """It says zero. Both targets are what an independent look at the picture finds: its colours, the VAE's means."""
    model = opened("llava", target=target)
    sample = sample_of(model, (RECA,), seed=4)
    colours = sample.target.permute(2, 0, 1) / 255 * 2 - 1
    if target == "pixel":
        wanted = colours
    else:
        mean = model.encoders.vae.moments(colours[None])[0].chunk(2)[0]
        wanted = (mean - model.goal.vae.shift_factor) * model.goal.vae.scale_factor
    batch = collated(model, sample)
    assert batch.counts == {RECA: wanted[0].numel()}
    sums = model.loss_sums(model.encode(batch))
    assert sums[RECA].item() == pytest.approx(wanted.square().mean(0).sum().item(), rel=1e-5)
    assert sums[I2T].item() == 0


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_picture_s_hidden_states_learn_from_the_reconstruction(flavour, opened) -> None:
    """The gradient of the reconstruction reaches projector and layers, and the head not at all."""
    model = opened(flavour, target="pixel")
    model.module.decoder.out.weight.data.normal_(std=0.1)
    sums = model.loss_sums(model.encode(collated(model, sample_of(model, (RECA,)))))
    sums[RECA].backward(retain_graph=True)
    reached = {name for name, p in model.module.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"language.norm.weight", "decoder.project.weight"} < reached
    assert any(name.startswith("language.projector.") for name in reached)
    assert all(f"language.layers.{i}.mlp.down_proj.weight" in reached for i in range(2))
    assert "language.lm_head.weight" not in reached


def test_a_few_steps_bring_the_reconstruction_near_the_picture(opened) -> None:
    model = opened("llava", target="pixel", decoder_size=0.2)
    samples = [sample_of(model, (RECA,), seed=seed) for seed in range(3)]
    samples = [replace(s, target=torch.full_like(s.target, 60 * i + 30)) for i, s in enumerate(samples)]
    batch = model.encode(collated(model, *samples))
    optimizer = torch.optim.Adam(model.module.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        (model.loss_sums(batch)[RECA] / batch.counts[RECA]).backward()
        optimizer.step()
    drawn = model.sample(samples, [(32, 16)] * 3, SamplingConfig(), [0] * 3)
    for wanted, picture_drawn in zip(samples, drawn, strict=True):
        assert (picture_drawn.float() - wanted.target[0, 0, 0]).abs().mean() < 25


def test_what_comes_after_the_picture_is_left_out_where_nobody_says_it(opened) -> None:
    model = opened("qwen")
    inputs = model.inputs(SQUARES)
    text = inputs.converse([Turn("What?", "A dog.")])
    seen, told = (inputs.plan(tasks, (56, 56), text).num_tokens for tasks in ((RECA,), (RECA, I2T)))
    head = len(model.wording.head) - 1
    assert seen == head + 4 and told == len(text.ids) + 3
    assert inputs.plan((RECA,), (56, 56), None).num_tokens == seen
    assert inputs.plan((I2T,), (56, 56), text).target is None


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_pictures_of_the_model_s_sizes_alone_are_taken(flavour, opened) -> None:
    model = opened(flavour)
    wrong = DataConfig(condition_resize=ResizeConfig(60, 60, 20), target_resize=SQUARES.target_resize)
    with pytest.raises(UserError, match=r"data\.condition_resize\.(max_size|stride)"):
        model.inputs(wrong)
    with pytest.raises(UserError, match=r"data\.target_resize\.stride is 6"):
        model.inputs(replace(SQUARES, target_resize=ResizeConfig(30, 30, 6, fit="squash")))
    with pytest.raises(UserError, match="different parts of a picture"):
        model.inputs(replace(SQUARES, target_resize=ResizeConfig(32, 32, 8, fit="crop")))


def test_what_it_does_not_learn_is_refused(opened, folders) -> None:
    model = opened()
    with pytest.raises(UserError, match=r"data\.tasks\.t2i"):
        model.inputs(replace(SQUARES, tasks=TaskWeights(t2i=1)))
    with pytest.raises(BadRecord, match="text-to-image"):
        model.inputs(SQUARES).plan((T2I,), (56, 56), None)
    with pytest.raises(UserError, match="freeze_und false"):
        AuxiliaryModel.open(ModelConfig(path=str(folders["llava"]))).inputs(SQUARES)
    with pytest.raises(BadRecord, match="more tokens than the 2048"):
        model.inputs(SQUARES).plan((I2T,), (56, 56), model.inputs(SQUARES).converse([Turn("", "dog " * 2100)]))


def test_drawing_asks_for_a_condition_and_a_trained_decoder(opened) -> None:
    model = opened()
    nothing = Sample("text", (), None, None, None)
    with pytest.raises(UserError, match="nothing from a text"):
        model.sample([nothing], [(32, 32)], SamplingConfig(), [0])
    seen = Sample("seen", (), picture(56, 56), None, None)
    with pytest.raises(UserError, match="multiples of 4"):
        model.sample([seen], [(30, 32)], SamplingConfig(), [0])
    with pytest.raises(UserError, match=r"sampling\.steps"):
        model.sample([seen], [(32, 32)], SamplingConfig(steps=3), [0])
    assert model.sample([seen], [(32, 16)], SamplingConfig(), [0])[0].shape == (16, 32, 3)
    model.module.requires_grad_(False)
    with pytest.raises(UserError, match="never trained"):
        model.sample([seen], [(32, 32)], SamplingConfig(), [0])


def test_latents_need_a_vae_and_pixels_do_not(folders, tmp_path) -> None:
    shutil.copytree(folders["llava"], tmp_path / "plain", ignore=shutil.ignore_patterns("vae"))
    options = ModelConfig(path=str(tmp_path / "plain"), precision="fp32", freeze_und=False)
    assert "no VAE" in AuxiliaryModel.check(tmp_path / "plain")
    with pytest.raises(UserError, match=r"--model\.auxiliary\.vae"):
        AuxiliaryModel.open(options).inputs(SQUARES)
    AuxiliaryModel.open(replace(options, auxiliary=AuxiliaryConfig(target="pixel"))).inputs(SQUARES)
    elsewhere = AuxiliaryConfig(vae=str(folders["llava"] / "vae"))
    model = AuxiliaryModel.open(replace(options, auxiliary=elsewhere))
    model.fill_encoders(CPU)
    assert model.encode_target(picture(32, 16))["target"].shape == (4, 4, 8)


def test_a_vae_of_another_kind_is_refused(folders, tmp_path) -> None:
    values = json.loads((folders["llava"] / "vae" / "config.json").read_text())
    for change, says in (
        ({"_class_name": "AutoencoderDC"}, "AutoencoderDC"),
        ({"block_out_channels": [32, 48]}, "block_out_channels"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"]}, "other blocks"),
        ({"use_quant_conv": True}, "use_quant_conv"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(values | change))
        with pytest.raises(UserError, match=says):
            vae_config(tmp_path)


def test_stable_diffusion_s_older_names_of_the_attention_are_read(folders, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    from reca_fast.models.auxiliary.vae import OLD_ATTENTION, WEIGHTS, read_vae

    state = load_file(folders["llava"] / "vae" / WEIGHTS)
    old = {}
    for key, tensor in state.items():
        for new, name in OLD_ATTENTION.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        old[key] = tensor
    assert old.keys() != state.keys()
    save_file(old, tmp_path / WEIGHTS)
    config = vae_config(folders["llava"] / "vae")
    read = read_vae(tmp_path, config, "cpu").state_dict()
    assert all(torch.equal(read[key], state[key]) for key in state)


def test_folders_of_other_models_are_left_to_them(folders, tmp_path) -> None:
    assert all(recognised(folder) is AuxiliaryModel for folder in folders.values())
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"]}))
    assert not AuxiliaryModel.recognises(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert not AuxiliaryModel.recognises(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"quantization_config": {}}, "quantized"),
        ({"text_config": {"model_type": "gpt2"}}, "gpt2"),
        ({"text_config": {"model_type": "mistral", "sliding_window": 16}}, "windows of 16"),
        ({"vision_config": {"model_type": "clip_vision_model", "hidden_size": "wide"}}, "no LlavaFor"),
    ],
)
def test_a_config_that_cannot_be_built_is_told_in_one_sentence(change, says, folders, tmp_path) -> None:
    shutil.copytree(folders["llava"], tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=says):
        AuxiliaryModel.open(ModelConfig(path=str(tmp_path / "copy"), freeze_und=False))


def test_weights_that_do_not_fit_the_config_are_refused(folders, tmp_path) -> None:
    shutil.copytree(folders["llava"], tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    values = json.loads(path.read_text())
    values["text_config"]["num_hidden_layers"] = 3
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="missing"):
        AuxiliaryModel.check(tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        AuxiliaryModel.check(tmp_path / "copy")


@pytest.mark.parametrize(
    ("name", "language", "tower"),
    [
        ("LLaVA-1.5-7B", 6_759_919_616, 303_507_456),
        ("Qwen2.5-VL-3B", 3_122_647_296, 631_975_680),
        ("InternVL3-2B", 1_784_945_152, 304_012_288),
    ],
)
def test_published_sizes_are_those_of_the_public_weights(name, language, tower) -> None:
    """7.06, 3.75 and 2.09 billion in all; the projector counts with the language model, the decoder apart."""
    model = AuxiliaryModel.published(name, ModelConfig(freeze_und=False))
    assert model is not None
    counted = [sum(p.numel() for p in part.parameters()) for part in (model.vlm.language, model.vlm.tower)]
    assert counted == [language, tower]
    assert sum(p.numel() for p in model.module.decoder.parameters()) == pytest.approx(30e6, rel=0.02)
    assert all(p.is_meta for p in model.module.parameters())


def test_a_head_of_its_own_in_the_file_counts_though_the_config_says_tied(folders, tmp_path) -> None:
    """As the public InternVL3 has it: its class ties by default, its file does not. transformers believes the file."""
    import transformers
    from safetensors.torch import load_file, save_file

    shutil.copytree(folders["internvl"], tmp_path / "copy")
    options = ModelConfig(path=str(tmp_path / "copy"), precision="fp32", freeze_und=False)
    assert AuxiliaryModel.open(options).vlm.language.is_tied
    path = tmp_path / "copy" / "model.safetensors"
    state = load_file(path)
    table = state["language_model.model.embed_tokens.weight"]
    save_file(state | {"language_model.lm_head.weight": table.clone()}, path, {"format": "pt"})
    assert AuxiliaryModel.open(options).vlm.language.is_tied
    save_file(state | {"language_model.lm_head.weight": table * 2}, path, {"format": "pt"})
    model = AuxiliaryModel.open(options)
    fill_model(model, CPU)
    assert torch.equal(model.module.language.lm_head.weight, 2 * model.module.language.embed_tokens.weight)
    theirs = transformers.InternVLForConditionalGeneration.from_pretrained(tmp_path / "copy", dtype=torch.float32)
    assert torch.equal(theirs.lm_head.weight, model.module.language.lm_head.weight)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_tower_runs_on_tensors_without_numbers_so_that_runs_can_be_planned(flavour, opened) -> None:
    """What transformers would read from the device comes ready-made, so nothing has to be read."""
    model, seen = opened(flavour), picture(56, 56)
    real = model.encode_condition(seen)["features"]
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.fill_empty(uniform(torch.float32, "cpu"))
        assert model.encode_condition(seen)["features"].shape == real.shape


def test_the_vae_is_part_of_the_base(folders, opened, tmp_path) -> None:
    """Its content counts, wherever it lies: a run is not resumed with another one."""
    elsewhere = Path(shutil.copytree(folders["llava"] / "vae", tmp_path / "vae"))
    assert elsewhere / "config.json" in opened("llava", vae=str(elsewhere)).files()
    assert folders["llava"] / "vae" / "config.json" in opened("llava").files()
