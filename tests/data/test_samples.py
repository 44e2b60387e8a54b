"""What a picture becomes under each task: its splits, its text, its sizes and its pixels."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage import data as photos

from reca_fast.config import DataConfig, ResizeConfig, TaskWeights
from reca_fast.data.records import BadRecord
from reca_fast.data.sources import Record
from reca_fast.errors import UserError
from reca_fast.sample import I2T, RECA, T2I, Text
from tests.builders import builder_of
from tests.data.packs import PHOTOS, SMALL


def test_a_reca_sample_is_three_splits() -> None:
    builder = builder_of(DataConfig(text_dropout=0.0), lambda text: range(21))
    plan = builder.plan(0, "a.jpg", (1024, 1024), None, epoch=0)
    assert (plan.tasks, plan.picture.condition, plan.picture.target) == ((RECA,), (224, 224), (1024, 1024))
    assert plan.num_tokens == 258 + 23 + 4098 == 4379
    dropped = builder_of(DataConfig(text_dropout=1.0), lambda text: range(21)).plan(0, "a", (1024, 1024), None, 0)
    assert dropped.text is None
    assert dropped.num_tokens == 258 + 4098  # the markers go with the text


def test_other_tasks_have_two_splits_and_use_the_caption() -> None:
    def plan(task: str, dropout: float, caption: str | None = "a red cat") -> Any:
        config = replace(SMALL, tasks=TaskWeights(**{"reca": 0.0, task: 1.0}), text_dropout=dropout)
        return builder_of(config).plan(0, "a", (96, 96), caption, 0)

    t2i, i2t = plan(T2I, 0.0), plan(I2T, 1.0)
    assert (t2i.text, t2i.picture.condition, t2i.num_tokens) == (Text((1, 3, 3)), None, 36 + 2 + 5)
    assert (i2t.text, i2t.picture.target, i2t.num_tokens) == (
        Text((1, 3, 3), ((0, 3),)),
        None,
        16 + 2 + 5,
    )  # i2t never drops its target
    assert plan(T2I, 1.0).text is None
    with pytest.raises(BadRecord, match="no caption"):
        plan(T2I, 0.0, caption=None)


def test_tasks_are_drawn_by_weight_and_fall_back_to_reca() -> None:
    config = replace(SMALL, tasks=TaskWeights(reca=1.0, t2i=2.0, i2t=1.0))
    builder = builder_of(config)
    drawn = [builder.plan(i, f"{i}", (64, 64), "a cat", 0).tasks[0] for i in range(4000)]
    for task, share in ((RECA, 0.25), (T2I, 0.5), (I2T, 0.25)):
        assert abs(drawn.count(task) / 4000 - share) < 0.03
    assert {builder.plan(i, f"{i}", (64, 64), None, 0).tasks for i in range(50)} == {(RECA,)}


def test_text_dropout_has_its_rate_and_changes_with_the_epoch() -> None:
    builder = builder_of(DataConfig(text_dropout=0.1))

    def flags_in(epoch: int) -> list[bool]:
        return [builder.plan(i, f"{i}", (64, 64), None, epoch).text is None for i in range(4000)]

    dropped = [flags_in(0), flags_in(1)]
    assert all(abs(sum(flags) / 4000 - 0.1) < 0.02 for flags in dropped)
    assert dropped[0] != dropped[1]


def test_build_resizes_and_blurs_as_planned() -> None:
    record = PHOTOS.read(3)
    sharp, blurred = (builder_of(replace(SMALL, blur_sigma=sigma)) for sigma in (0.0, 2.0))
    with Image.open(io.BytesIO(record.image)) as picture:
        plan = sharp.plan(3, record.key, picture.size, None, 0)
    sample, soft = sharp.build(record, plan), blurred.build(record, plan)
    assert sample.condition.shape == (plan.picture.condition[1], plan.picture.condition[0], 3)
    assert sample.target.shape == (plan.picture.target[1], plan.picture.target[0], 3)
    assert soft.condition.float().std() < sample.condition.float().std()
    assert torch.equal(soft.target, sample.target)  # the target stays sharp
    with pytest.raises(BadRecord, match="changed since"):
        sharp.build(PHOTOS.read(4), plan)


@pytest.mark.parametrize("turn", [1, 3, 5, 6, 8])
def test_photographs_are_planned_and_built_upright(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    out = io.BytesIO()
    Image.fromarray(photos.coffee()).resize((120, 80)).save(out, "JPEG", exif=exif)
    record = Record("a.jpg", out.getvalue(), None)
    shown = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(record.image))))
    for orientation, method, allowed in (("apply", "exact", 0), ("apply", "fast", 5), ("ignore", "fast", 0)):
        builder = builder_of(replace(SMALL, orientation=orientation, resize=method))
        size = builder.picture_size(record.image)
        assert size == (shown.shape[1::-1] if orientation == "apply" else (120, 80))
        plan = builder.plan(0, record.key, size, None, 0)
        sample = builder.build(record, plan)
        assert sample.condition.shape[1::-1] == plan.picture.condition
        assert sample.target.shape[1::-1] == plan.picture.target
        if orientation == "apply":
            expected = np.array(Image.fromarray(shown).resize(plan.picture.target, Image.Resampling.BICUBIC)).astype(
                int
            )
            assert abs(sample.target.numpy() - expected).max() <= allowed


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"condition_resize": ResizeConfig(224, 224, 16)},
            "condition_resize.stride is 16; this model needs a multiple of 14",
        ),
        ({"target_resize": ResizeConfig(64, 128, 16)}, "data.target_resize.min_size=128 is above"),
        ({"tasks": TaskWeights(reca=0.0)}, "set at least one above 0"),
        ({"tasks": TaskWeights(reca=2.0, t2i=-1.0)}, r"data\.tasks\.t2i=-1\.0: it must be at least 0"),
        ({"text_dropout": 1.5}, r"data\.text_dropout=1\.5: it must be at least 0 and at most 1"),
        ({"blur_sigma": -1.0}, r"data\.blur_sigma=-1\.0"),
        ({"max_image_pixels": 0}, r"data\.max_image_pixels=0"),
        ({"condition_resize": ResizeConfig(56, 56, 14, max_pixels=0)}, r"data\.condition_resize\.max_pixels=0"),
    ],
)
def test_impossible_settings_are_refused(change: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        builder_of(replace(SMALL, **change))
