"""Where the rows of a pack stand, on small pictures."""

import torch

from reca_fast.models.harmon.layout import Piece, Prompt, build_layout
from reca_fast.sample import RECA, T2I

HIDDEN = torch.tensor([True, False, True, False, True, True])  # of a picture of 2 x 3 tokens
DRAWN = Piece(Prompt((1, 2, 3), (4, 5)), (2, 3), (2, 3), same=True, hidden=HIDDEN)
SAID = Piece(Prompt((1, 2, 3), (6, 7, 8, 9), ((2, 4),)), condition=(1, 2))
CAPTION = Piece(Prompt((1,), (10, 11)), target=(1, 2), hidden=torch.tensor([False, True]), task=T2I)


def test_the_drawing_at_the_top_of_the_page() -> None:
    layout = build_layout([DRAWN], buffers=2)
    encoder, language, decoder = layout.encoder, layout.language, layout.decoder
    # Sources of the encoder: 2 x 2 buffers (0 to 3), condition tokens (4 to 9), visible tokens (10, 11).
    assert encoder.order.tolist() == [0, 1, 4, 5, 6, 7, 8, 9, 2, 3, 10, 11]
    assert encoder.visible.tolist() == [1, 3] and (encoder.condition_tokens, encoder.condition_rows) == (6, 8)
    assert encoder.segments.cu_seqlens_q.tolist() == [0, 8, 12] and not encoder.segments.causal
    # p p p o o o o o o b b p p x x b b
    assert language.text_ids.tolist() == [1, 2, 3, 4, 5]
    assert language.text_rows.tolist() == [0, 1, 2, 11, 12]
    assert language.slot_rows.tolist() == [9, 10, 3, 4, 5, 6, 7, 8, 15, 16, 13, 14]
    assert language.positions.tolist() == list(range(17))
    assert language.asked.tolist() == [13, 14, 15, 16] and language.seen.tolist() == [2, 3, 0, 1]
    segments = language.asked_view.segments
    assert (segments.cu_seqlens_q.tolist(), segments.cu_seqlens_k.tolist()) == ([0, 4], [0, 17]) and segments.causal
    # b b o o o o o o, of [2 buffers ; 2 visible ; 4 hidden]
    assert decoder.order.tolist() == [0, 1, 4, 2, 5, 3, 6, 7]
    assert decoder.rows.tolist() == [2, 4, 6, 7] and decoder.tokens.tolist() == decoder.latents.tolist() == [0, 2, 4, 5]
    assert layout.predicted == {RECA: 4} and layout.pictures == ((0, False),)


def test_every_row_of_a_mixed_pack_has_one_place() -> None:
    own = Piece(Prompt((1,), ()), (1, 1), (2, 3), hidden=HIDDEN)  # a condition of another size
    pieces = [CAPTION, DRAWN, SAID, own]
    layout = build_layout(pieces, buffers=2)
    encoder, language, decoder = layout.encoder, layout.language, layout.decoder
    rows = torch.cat((language.text_rows, language.slot_rows))
    assert rows.sort().values.tolist() == list(range(len(language.positions)))
    assert encoder.order.sort().values.tolist() == list(range(len(encoder.order)))
    assert decoder.order.sort().values.tolist() == list(range(len(decoder.order)))
    # Conditions first, then the targets that are no condition.
    assert layout.pictures == ((1, False), (2, False), (3, False), (0, True), (3, True))
    assert encoder.grids == ((2, 3), (1, 2), (1, 1), (1, 2), (2, 3)) and encoder.condition_tokens == 9
    assert encoder.visible.tolist() == [9, 1, 3, 12, 14]
    # The predicted tokens of one task lie together, whatever the order of the samples.
    assert layout.predicted == {RECA: 8, T2I: 1}
    assert decoder.latents.tolist() == [0, 2, 4, 5, 11, 13, 15, 16, 10]
    assert decoder.tokens.tolist() == [2, 4, 6, 7, 8, 10, 12, 13, 1]


def test_labels_are_predicted_by_the_row_before() -> None:
    layout = build_layout([DRAWN, SAID], buffers=2)
    language = layout.language
    assert language.labels.tolist() == [8, 9]
    rows = language.asked[language.label_rows] - 17  # in the second sample: p p p o o b b p p p p
    assert rows.tolist() == [8, 9]
    assert language.asked[4:].tolist() == [25, 26, 27]  # from the first one that is read to the end


def test_a_picture_may_be_hidden_as_a_whole() -> None:
    layout = build_layout([Piece(Prompt((1,), ()), (1, 2), (1, 2), same=True, hidden=torch.ones(2).bool())], buffers=2)
    assert layout.encoder.visible.tolist() == [] and layout.encoder.segments.cu_seqlens_q.tolist() == [0, 4, 6]
    assert layout.decoder.hidden == 2 and layout.predicted == {RECA: 2}
