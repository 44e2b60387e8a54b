"""How BAGEL words conversations: every text stands between markers, and answers are learned up to their end markers."""

from reca_fast.config import DataConfig
from reca_fast.models.bagel.collate import collate
from reca_fast.models.bagel.config import BAGEL_7B_MOT
from reca_fast.models.bagel.inputs import BagelInputs
from reca_fast.randomness import generator
from reca_fast.sample import I2T, Sample, Text, Turn
from tests.builders import MARKERS

BOS, EOS = MARKERS.bos, MARKERS.eos


class Inputs(BagelInputs):
    def tokenize(self, text: str) -> list[int]:
        return [100 + ord(letter) for letter in text]


INPUTS = Inputs(BAGEL_7B_MOT, MARKERS, DataConfig())


def ids(text: str) -> list[int]:
    return INPUTS.tokenize(text)


def learned(text: Text) -> tuple[list[int], dict[int, int]]:
    """The tokens of a sample of nothing but this text, and position -> the token that has to follow."""
    batch = collate([Sample("a", (I2T,), None, None, text)], BAGEL_7B_MOT, MARKERS, generator(0))
    assert batch.counts[I2T] == len(batch.labels)
    return batch.text_ids.tolist(), dict(zip(batch.label_rows.tolist(), batch.labels.tolist(), strict=True))


def test_a_caption_is_learned_from_its_first_token_to_the_end_marker() -> None:
    tokens, labels = learned(INPUTS.converse([Turn("", "a cat")]))
    assert tokens == [BOS, *ids("a cat"), EOS]
    assert labels == dict(enumerate([*ids("a cat"), EOS]))


def test_questions_are_given_and_answers_learned() -> None:
    tokens, labels = learned(INPUTS.converse([Turn("who", "me"), Turn("why", "so"), Turn("", "!")]))
    texts = ("who", "me", "why", "so", "!")
    assert tokens == [token for text in texts for token in (BOS, *ids(text), EOS)]
    begin = 0
    expected: dict[int, int] = {}
    for text in texts:
        if text in ("me", "so", "!"):
            expected |= {begin + n: token for n, token in enumerate([*ids(text), EOS])}
        begin += len(text) + 2
    assert labels == expected


def test_a_plan_counts_every_token_of_a_conversation() -> None:
    text = INPUTS.converse([Turn("who", "me"), Turn("why", "so")])
    plan = INPUTS.plan((I2T,), (224, 224), text)
    assert plan.num_tokens == 256 + 2 + len(learned(text)[0])
