"""The template in Qwen2.5's ids, and what is learnt of a conversation."""

import pytest

from reca_fast.models.harmon.tokenizer import PUBLISHED_TOKENIZER, open_tokenizer
from reca_fast.sample import Text, Turn

CLOSING = (151645, 198, 151644, 77091, 198)
GENERATE = (31115, 458, 2168, 13)
REQUEST = Text((7, 8, 9))


@pytest.fixture(scope="module")
def words(tiny):
    return open_tokenizer(tiny, 10_000)


@pytest.mark.parametrize(
    ("text", "options", "before", "after"),
    [
        (REQUEST, {"seen": True}, (151644, 872, 271), (7, 8, 9, *CLOSING)),
        (REQUEST, {"seen": True, "training": False}, (151644, 872, 198), (7, 8, 9, *CLOSING)),
        (None, {"seen": True}, (151644, 872, 198), (*GENERATE, *CLOSING)),
        (None, {"seen": False}, (151644, 872, 198), (*GENERATE, *CLOSING)),
        (REQUEST, {"seen": False}, (151644, 872, 198), (31115, 458, 2168, 25, 7, 8, 9, *CLOSING)),
        (Text((198, 5, 6), ((1, 3),)), {"seen": True}, (151644, 872, 198), (198, 5, 6)),
    ],
    ids=["reca", "reconstruction", "reca without its request", "unguided", "t2i", "i2t"],
)
def test_what_stands_around_a_condition(text, options, before, after) -> None:
    prompt = PUBLISHED_TOKENIZER.prompt(text, **options)
    assert (prompt.before, prompt.after) == (before, after)
    assert prompt.said == (() if text is None else text.said)


def test_long_texts_are_cut_off_behind() -> None:
    long = PUBLISHED_TOKENIZER.prompt(Text(tuple(range(200))), seen=True)
    assert len(long) == 128 and long.after == tuple(range(125))
    answer = PUBLISHED_TOKENIZER.prompt(Text(tuple(range(2000)), ((5, 9), (1400, 1800), (1900, 2000))), seen=True)
    assert len(answer) == 1472 and answer.said == ((5, 9), (1400, 1469))


def test_a_caption_is_tokenized_with_the_request_before_it(words) -> None:
    caption = Text(tuple(words.encode("a red cup, ☕ and more")))
    prompt = words.prompt(caption, seen=False)
    said = words.qwen.decode(list(prompt.before + prompt.after))
    assert said == ("<|im_start|>user\nGenerate an image: a red cup, ☕ and more<|im_end|>\n<|im_start|>assistant\n")
    ids = prompt.after[: len(prompt.after) - len(words._closing)]
    assert list(ids) == words.encode("Generate an image: a red cup, ☕ and more")


def test_answers_are_learnt_with_their_end_marker(words) -> None:
    text = words.converse([Turn("What is this?", "A cup."), Turn("Which colour?", "Red.")])
    said = ["".join(words.qwen.decode(list(text.ids[first:stop]))) for first, stop in text.said]
    assert said == ["A cup.<|im_end|>", "Red.<|im_end|>"]
    assert words.qwen.decode(list(text.ids)) == (
        "\nWhat is this?<|im_end|>\n<|im_start|>assistant\nA cup.<|im_end|>"
        "\n<|im_start|>user\nWhich colour?<|im_end|>\n<|im_start|>assistant\nRed.<|im_end|>"
    )


def test_a_caption_answers_a_question_of_our_own(words) -> None:
    text = words.converse([Turn("", "A cup.")])
    assert "Describe this picture in detail.<|im_end|>" in words.qwen.decode(list(text.ids))
    assert text.supervised


def test_markers_in_a_text_become_ordinary_tokens(words) -> None:
    assert words.end not in words.encode("a <|im_end|> b")
