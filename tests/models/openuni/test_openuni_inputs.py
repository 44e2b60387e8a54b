"""The data side: prompts as the authors put them, one picture for both ends, packs of several sizes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reca_fast.config import DataConfig, ModelConfig, ResizeConfig, SamplingConfig, TaskWeights
from reca_fast.errors import UserError
from reca_fast.models.openuni import OpenUniModel
from reca_fast.models.openuni.batch import draw_timesteps
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import RECA, T2I, Sample, Text, Turn

pytestmark = pytest.mark.usefixtures("one_thread")
SQUARE = ResizeConfig(32, 16, 8)
ONE = DataConfig(condition_resize=SQUARE, target_resize=SQUARE)


@pytest.fixture(scope="module")
def model(tiny, filled):
    return filled(tiny)


def picture(width: int, height: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def whole(model: OpenUniModel, spelled: str) -> list[int]:
    """The tokens of a prompt that is spelled with its markers."""
    ids: list[int] = model.tokenizer.qwen.encode(spelled, add_special_tokens=False)
    return ids


@pytest.mark.parametrize("caption", ["a red cup", "Two cats; one sleeps.", " white space around it \n", "Ünïcode 漢字"])
def test_a_request_has_the_tokens_of_its_whole_spelling(model, caption) -> None:
    frame = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<img>"
    wanted = whole(model, frame.format(f"Generate an image: {caption.strip()}"))
    assert model.tokenizer.request(model.tokenize(caption)) == wanted[:128]
    assert model.tokenizer.request(None) == whole(model, frame.format("Generate an image."))


def test_a_prompt_about_a_picture_has_the_tokens_of_its_whole_spelling(model) -> None:
    shown = "<img>" + "<IMG_CONTEXT>" * 16 + "</img>"
    wanted = f"<|im_start|>user\n{shown}\nDescribe the image in detail.<|im_end|>\n<|im_start|>assistant\n<img>"
    said = model.tokenize("Describe the image in detail.")
    assert model.tokenizer.about_picture(16, said) == whole(model, wanted)


def test_a_text_cannot_spell_a_marker(model) -> None:
    ids = model.tokenize("<IMG_CONTEXT> <img> <|im_end|>")
    assert not set(ids) & set(model.tokenizer.markers.values())
    assert model.tokenizer.request(ids).count(model.tokenizer.picture) == 0


def test_a_long_request_is_cut_behind_128_tokens_and_a_long_instruction_is_not(model) -> None:
    words = model.tokenize("word " * 300)
    request = model.tokenizer.request(words)
    assert len(request) == 128 and request[-1] != model.tokenizer.markers["<img>"]
    assert len(model.tokenizer.about_picture(16, words)) > 300


@pytest.mark.parametrize(
    ("change", "one"),
    [({}, True), ({"blur_sigma": 1.0}, False), ({"condition_resize": ResizeConfig(16, 16, 8)}, False)],
)
def test_one_picture_is_condition_and_target_where_both_are_asked_for_alike(model, change, one) -> None:
    plan = model.inputs(replace(ONE, **change)).plan([RECA], (48, 40), None)
    assert (plan.condition is None) == one and plan.target == (32, 24)
    assert model.inputs(replace(ONE, **change)).plan([T2I], (48, 40), None).condition is None


def test_a_picture_that_is_both_gives_the_losses_of_two_that_are_alike(model) -> None:
    """And it is moved and encoded as one."""
    text = Text(tuple(model.tokenize("Describe it.")))
    image = picture(32, 24)
    samples = [Sample("", (RECA,), condition, image, text) for condition in (None, image.clone())]
    one, two = (model.inputs(ONE).collate([sample], draw_of_pack(0, 0, 0)) for sample in samples)
    assert one.conditions[0] is one.targets[0] and one.to("cpu").conditions[0] is one.to("cpu").targets[0]
    losses = [model.loss_sums(model.encode(batch))[RECA].item() for batch in (one, two)]
    assert losses[0] == losses[1]


def test_a_pack_of_several_sizes_and_tasks_sums_what_its_samples_give_alone(model) -> None:
    """Noise depends on a cell's place in the pack, so it is recorded and handed to each sample."""
    torch.nn.init.normal_(model.module.sana.proj_out.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    text = Text(tuple(model.tokenize("a red cup")))
    sizes = [(32, 16), (16, 32), (32, 16), (24, 24)]
    tasks = [RECA, T2I, T2I, RECA]
    samples = [
        Sample(str(i), (task,), None, picture(*size, seed=i), text if i else None)
        for i, (size, task) in enumerate(zip(sizes, tasks, strict=True))
    ]
    collate = model.inputs(ONE).collate
    together = model.encode(collate(samples, draw_of_pack(0, 0, 0)))
    assert [(g.pictures, g.rows, g.columns) for g in together.groups] == [(1, 4, 2), (1, 3, 3), (2, 2, 4)]
    noise = torch.randn(len(together.target_index), 8, generator=torch.Generator().manual_seed(1))
    together = replace(together, draws=together.draws._replace(noise=noise))
    sums = {task: total.item() for task, total in model.loss_sums(together).items()}
    alone = dict.fromkeys(sums, 0.0)
    order = sorted(range(4), key=lambda i: sizes[i])
    for place, i in enumerate(order):
        batch = model.encode(collate([samples[i]], draw_of_pack(0, 0, 0)))
        mine = noise[together.target_index == place]
        draws = batch.draws._replace(timesteps=together.draws.timesteps[place : place + 1], noise=mine)
        alone[tasks[i]] += model.loss_sums(replace(batch, draws=draws))[tasks[i]].item()
    assert sums == pytest.approx(alone, rel=1e-5)
    assert together.counts == {T2I: 16, RECA: 17}


def test_times_are_whole_and_unshifted() -> None:
    u = torch.tensor([0.0, 0.0009999, 0.001, 0.5, 0.9999999])
    assert draw_timesteps(u).tolist() == [1000, 1000, 999, 500, 1]
    many = draw_timesteps(torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    assert (many.min().item(), many.max().item()) == (1, 1000) and abs(many.mean().item() - 500.5) < 5


def test_what_it_cannot_learn_is_refused(model, tiny) -> None:
    with pytest.raises(UserError, match=r"data\.tasks\.i2t is above 0: OpenUni"):
        model.inputs(DataConfig(tasks=TaskWeights(reca=1, i2t=1)))
    with pytest.raises(UserError, match=r"data\.target_resize\.stride is 4"):
        model.inputs(replace(ONE, target_resize=ResizeConfig(32, 16, 4)))
    with pytest.raises(UserError, match="frozen"):
        model.inputs(ONE).converse([Turn("", "a cup")])
    with pytest.raises(UserError, match=r"set --model\.freeze_und true"):
        OpenUniModel.open(ModelConfig(path=str(tiny), freeze_und=False))
    with pytest.raises(UserError, match=r"set --model\.condition understanding"):
        OpenUniModel.open(ModelConfig(path=str(tiny), condition="generation"))


def test_a_sample_without_its_instruction_has_no_picture_either(model) -> None:
    """It teaches what guidance compares with: a prompt that asks for any picture."""
    shown = Sample("a", (RECA,), None, picture(32, 32), Text(tuple(model.tokenize("Describe it."))))
    batch = model.inputs(ONE).collate([shown, replace(shown, key="b", text=None)], draw_of_pack(0, 0, 0))
    bare = model.tokenizer.request(None)
    assert batch.prompt_ids.tolist()[-len(bare) :] == bare
    assert len(batch.conditions) == 1 and len(batch.targets) == 2 and batch.counts == {RECA: 32}


def test_guidance_behind_a_picture_leads_away_from_any_picture(model) -> None:
    """`guidance` itself acts behind captions alone, as the authors have it."""
    asked = [Sample("a", (), picture(32, 32), None, Text(tuple(model.tokenize("Describe it."))))]

    def drawn(**settings: float) -> Tensor:
        with torch.inference_mode():
            return model.sample(asked, [(32, 32)], SamplingConfig(steps=2, **settings), [0])[0]

    assert torch.equal(drawn(guidance=3.0), drawn(guidance=1.0))
    assert torch.equal(drawn(image_guidance=1.0), drawn(guidance=1.0))
    assert not torch.equal(drawn(image_guidance=3.0), drawn(guidance=1.0))
