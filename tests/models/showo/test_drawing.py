"""Show-o draws from a text, or from a condition and a text, of any size that codes divide."""

import pytest
import torch
from torch import Tensor

from reca_fast.config import SamplingConfig
from reca_fast.errors import UserError
from reca_fast.models.showo.layout import FULL
from reca_fast.models.showo.rows import GIVEN, VECTORS, RowMaker
from reca_fast.sample import Sample, Text

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["clip_folder", "codes_folder"])
def folder(request):
    return request.getfixturevalue(request.param)


def asked(words: tuple[int, ...] | None, condition: Tensor | None = None) -> Sample:
    return Sample("asked", (), condition, None, None if words is None else Text(words))


def test_a_picture_follows_its_text_its_condition_and_the_guidance(opened, folder) -> None:
    model = opened(folder)
    model.module.lm_head.weight.data *= 10  # random weights say little of what they are asked
    condition = torch.randint(256, (32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    drawn = {}
    for guidance in (1.0, 6.0):
        samples = [asked((5, 6)), asked((7,)), asked((5, 6), condition), asked(None, condition)]
        settings = SamplingConfig(steps=3, guidance=guidance)
        drawn[guidance] = model.sample(samples, [(40, 24)] * 4, settings, [3] * 4)
    assert all(p.shape == (24, 40, 3) and p.dtype == torch.uint8 for p in drawn[1.0])
    flat = [p.flatten() for guidance in drawn for p in drawn[guidance]]
    assert torch.stack(flat).unique(dim=0).shape[0] == len(flat)


def test_what_it_cannot_draw_is_refused(opened, folder) -> None:
    model = opened(folder)
    with pytest.raises(UserError, match="36 x 24 cannot be drawn: both sides must be multiples of 8"):
        model.sample([asked((5,))], [(36, 24)], SamplingConfig(), [0])
    with pytest.raises(UserError, match="timestep_shift"):
        model.sample([asked((5,))], [(32, 24)], SamplingConfig(timestep_shift=2.0), [0])


@pytest.mark.parametrize("vectors", [None, 16])
def test_guidance_leaves_out_the_condition_and_nothing_else(opened, folder, vectors) -> None:
    """The rows that remain keep their positions, so they lie as far from the target as before."""
    maker = RowMaker(opened(folder).tokenizer, vectors)
    rows = [maker.spans(6, 9, Text((5, 6))), maker.unconditional(6, 9, Text((5, 6)))]
    places = []
    for spans in rows:
        pieces = [piece for _, pieces in spans for piece in pieces]
        place, ends = 0, []
        for piece in pieces:
            place = (place if piece.position is None else piece.position) + piece.length
            ends.append((piece.kind, piece.ids[:1], place))
        places.append(ends)
    kinds = {kind for kind, _, _ in places[1]}
    assert not kinds & {GIVEN, VECTORS} and places[0][-1] == places[1][-1]
    assert rows[0][-1] == rows[1][-1] and rows[0][-1][0] == FULL
    assert rows[1][0][1][0].ids == (maker._marks.t2i,)
