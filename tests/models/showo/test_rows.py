"""What Show-o's packs hold: marks, positions, what is masked, what is learnt, and where gradients end."""

import pytest
import torch
from torch import Tensor

from reca_fast.config import DataConfig, ModelConfig, ResizeConfig
from reca_fast.data.inputs import Size
from reca_fast.data.records import BadRecord
from reca_fast.models.showo import ShowoModel
from reca_fast.models.showo.batch import ShowoBatch
from reca_fast.models.showo.collate import masked_codes
from reca_fast.models.showo.inputs import ShowoInputs
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import I2T, RECA, T2I, Sample, Text, Turn

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = DataConfig(condition_resize=ResizeConfig(32, 32, 16), target_resize=ResizeConfig(64, 32, 8))


@pytest.fixture(scope="module")
def by_clip(clip_folder) -> ShowoModel:
    return ShowoModel.open(ModelConfig(path=str(clip_folder), freeze_und=False, precision="fp32"))


@pytest.fixture(scope="module")
def by_codes(codes_folder) -> ShowoModel:
    return ShowoModel.open(ModelConfig(path=str(codes_folder), freeze_und=False, precision="fp32"))


def picture(size: Size | None) -> Tensor | None:
    noise = torch.Generator().manual_seed(0)
    return None if size is None else torch.randint(256, (*size[::-1], 3), dtype=torch.uint8, generator=noise)


def batch_of(inputs: ShowoInputs, *served: tuple[str, Text | None]) -> ShowoBatch:
    """A pack with a sample for each task and text, of pictures of 64 x 48."""
    samples = []
    for task, text in served:
        plan = inputs.plan([task], (64, 48), text)
        samples.append(Sample(task, (task,), picture(plan.condition), picture(plan.target), text))
    return inputs.collate(samples, draw_of_pack(0, 0, 0))


def in_order(batch: ShowoBatch) -> list[int]:
    """The token ids of a batch of one sample, by position; -1 for a code or a vector."""
    ids = torch.full((batch.num_tokens,), -1)
    ids[batch.text_rows] = batch.text_ids
    return ids[batch.positions.argsort()].tolist()


def test_a_reconstruction_through_clip_is_what_the_authors_read(by_clip) -> None:
    words, marks = by_clip.tokenizer, by_clip.tokenizer.vocabulary
    prompt = tuple(words.encode("Describe it."))
    batch = batch_of(by_clip.inputs(DATA), (RECA, Text(prompt)))
    asked = [marks.bos, *words.encode("USER: \n Describe it. ASSISTANT:"), marks.eos]
    assert in_order(batch) == [marks.mmu, marks.soi, *[-1] * 16, marks.eoi, *asked, marks.soi, *[-1] * 48]
    assert sorted(batch.positions.tolist())[-49:] == list(range(128 + 16, 128 + 16 + 49))  # behind all padding
    assert len(batch.vector_rows) == 16 and len(batch.target_rows) == 6 * 8 and batch.detached.all()


def test_a_reconstruction_of_codes_is_what_the_authors_read(by_codes) -> None:
    words, marks = by_codes.tokenizer, by_codes.tokenizer.vocabulary
    batch = batch_of(by_codes.inputs(DATA), (RECA, Text(tuple(words.encode("Why?")))))
    asked = [marks.bos, *words.encode("USER: \n Why? ASSISTANT:"), marks.eos]
    given = [marks.mmu, marks.soi, *[-1] * 8, marks.eoi]  # 32 x 16 pixels
    assert in_order(batch) == [*given, *asked, marks.soi, *[-1] * 48, marks.eoi]
    assert batch.detached is None and batch.positions.tolist() != list(range(batch.num_tokens))  # sorted for attention


def test_a_picture_from_a_text_is_what_the_authors_read(by_clip) -> None:
    marks = by_clip.tokenizer.vocabulary
    for text, ids in ((Text((5, 6)), [5, 6]), (None, [])):
        batch = batch_of(by_clip.inputs(DATA), (T2I, text))
        assert in_order(batch) == [marks.t2i, marks.bos, *ids, marks.eos, marks.soi, *[-1] * 48, marks.eoi]


def test_marks_are_learnt_where_a_text_is_drawn_and_not_in_a_reconstruction(by_codes) -> None:
    batch = batch_of(by_codes.inputs(DATA), (T2I, None), (RECA, None), (T2I, None))
    learnt, marks = batch.learnt, by_codes.tokenizer.vocabulary
    assert batch.counts[RECA] + batch.counts[T2I] == len(batch.masked) + 4
    assert learnt[T2I].ids.tolist() == [marks.soi, marks.eoi] * 2 and len(learnt[RECA].ids) == 0
    labels = learnt[T2I].labels(torch.arange(3 * 48), marks.first_code)
    assert set(labels.tolist()) <= {marks.soi, marks.eoi} | set(range(marks.first_code, marks.first_code + 144))


@pytest.mark.parametrize("model", ["by_clip", "by_codes"])
def test_a_row_predicts_the_token_that_follows_it(model, request) -> None:
    model = request.getfixturevalue(model)
    inputs = model.inputs(DATA)
    text = inputs.converse((Turn("What is it?", "A cup."), Turn("Red?", "Yes.")))
    batch = batch_of(inputs, (I2T, text))
    ids, place = in_order(batch), batch.positions.argsort().argsort()
    learnt = batch.learnt[I2T]
    following = [ids[place[row] + 1] for row in learnt.rows.tolist()]
    assert following == learnt.ids.tolist() == [i for start, stop in text.said for i in text.ids[start:stop]]
    assert batch.counts == {I2T: len(following)}


def test_a_caption_is_learnt_from_the_mark_behind_the_picture_on(by_codes) -> None:
    inputs = by_codes.inputs(DATA)
    text = inputs.converse((Turn("", "A cup."),))
    learnt = batch_of(inputs, (I2T, text)).learnt[I2T]
    assert learnt.ids.tolist() == list(text.ids) and text.ids[0] == by_codes.tokenizer.vocabulary.bos


def test_a_prompt_that_does_not_fit_before_a_target_is_skipped(by_clip) -> None:
    with pytest.raises(BadRecord, match="prompt too long"):
        by_clip.inputs(DATA).plan([RECA], (64, 48), Text((5,) * 200))


def test_pictures_to_be_understood_have_the_shorter_side_of_clip(by_clip, by_codes) -> None:
    assert by_clip.inputs(DATA).plan([I2T], (200, 100), None).condition == (112, 56)
    assert by_clip.inputs(DATA).plan([I2T], (100, 300), None).condition == (56, 168)
    assert by_codes.inputs(DATA).plan([I2T], (200, 100), None).condition == (64, 32)
    cropped = DataConfig(condition_resize=ResizeConfig(32, 32, 16, fit="crop"), target_resize=ResizeConfig(64, 64, 8))
    assert by_clip.inputs(cropped).plan([I2T], (200, 100), None).condition == (56, 56)


def test_a_cosine_says_how_many_codes_are_masked() -> None:
    order = torch.rand(100, generator=torch.Generator().manual_seed(1))
    assert [int(masked_codes(torch.tensor(x), order).sum()) for x in (0.0, 0.5, 0.9999)] == [100, 71, 1]
    assert int(masked_codes(torch.tensor(0.9999), order, least=0.25).sum()) == 25
    assert torch.equal(masked_codes(torch.tensor(0.5), order), order.argsort() < 71)


def test_no_gradient_reaches_what_a_reconstruction_reads_through_clip(opened, clip_folder) -> None:
    model = opened(clip_folder)
    inputs = model.inputs(DATA)
    for task, text in ((RECA, None), (I2T, inputs.converse((Turn("", "A cup."),)))):
        model.module.zero_grad()
        sum(model.loss_sums(model.encode(batch_of(inputs, (task, text)))).values()).backward()
        reached = {n for n, p in model.module.named_parameters() if p.grad.any()}
        assert ("embed_tokens.weight" in reached) == ("mm_projector.0.weight" in reached) == (task == I2T)
        assert {"layers.0.q_proj.weight", "final_layernorm.weight", "lm_head.weight"} <= reached


def test_a_checkpoint_with_clip_may_read_codes_instead(opened, clip_folder) -> None:
    model = opened(clip_folder, condition="generation")
    batch = model.encode(batch_of(model.inputs(DATA), (RECA, None)))
    assert batch.vectors is None and len(batch.given) == 8 and batch.detached is None
    model.loss_sums(batch)[RECA].backward()
    assert model.module.embed_tokens.weight.grad.any() and not model.module.mm_projector[0].weight.grad.any()
