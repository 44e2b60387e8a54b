"""The paper's conditions of 224 to 512 pixels, as codes and for CLIP: what they become, how many rows they take."""

import pytest

from reca_fast.config import DataConfig, ResizeConfig
from reca_fast.errors import UserError
from reca_fast.models.showo.encoders import EncoderConfig
from reca_fast.models.showo.inputs import ShowoInputs
from reca_fast.models.showo.tokenizer import ADDED_WORDS, PUBLISHED_TOKENIZER
from reca_fast.sample import RECA, Text

TEMPLATE = Text(tuple(range(20)))
PROMPT = 20 + ADDED_WORDS + 2
TARGET = 1024


def inputs(side: int, *, stride: int = 16, clip: bool = False) -> ShowoInputs:
    condition = ResizeConfig(max_size=side, min_size=side, stride=stride, fit="squash")
    data = DataConfig(
        condition_resize=condition, target_resize=ResizeConfig(max_size=512, min_size=512, stride=16, fit="squash")
    )
    return ShowoInputs(PUBLISHED_TOKENIZER, EncoderConfig(), data, clip_sees=clip)


@pytest.mark.parametrize(("side", "codes"), [(224, 196), (256, 256), (384, 576), (512, 1024)])
def test_a_condition_without_clip_takes_a_row_for_each_code(side, codes) -> None:
    plan = inputs(side).plan((RECA,), (640, 480), TEMPLATE)
    assert plan.condition == (side, side) and plan.target == (512, 512)
    assert plan.num_tokens == 1 + (1 + codes + 1) + PROMPT + (1 + TARGET + 1)


@pytest.mark.parametrize("side", [224, 256, 384, 512])
def test_clip_makes_as_many_vectors_of_any_condition(side) -> None:
    plan = inputs(side, clip=True).plan((RECA,), (640, 480), TEMPLATE)
    assert plan.condition == (side, side)
    assert plan.num_tokens == 2 + 576 + 1 + PROMPT + (1 + TARGET)


def test_codes_need_whole_cells_and_clip_does_not() -> None:
    with pytest.raises(UserError, match=r"data\.condition_resize\.stride is 14; this model needs a multiple of 16"):
        inputs(224, stride=14)
    inputs(224, stride=14, clip=True)
