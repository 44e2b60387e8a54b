"""What the understanding is taught: whoever tells a scene, and in whatever order, says the same words."""

import pytest

from reca_fast.models.openuni.tokenizer import OpenUniTokenizer
from reca_fast.proof.pretraining.checkpoint import toy_config, write_toy_tokenizer
from reca_fast.proof.pretraining.lessons import EVERYTHING, Lessons, form, in_order, part_of, words_of
from reca_fast.toy import WORDS, parse

CONFIG = toy_config()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> OpenUniTokenizer:
    return write_toy_tokenizer(tmp_path_factory.mktemp("toy") / "base")


def test_every_word_of_the_toy_language_is_one_token(tokenizer: OpenUniTokenizer) -> None:
    assert {word: len(words_of(tokenizer, word)) for word in WORDS} == dict.fromkeys(WORDS, 1)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("a red circle right of a blue square", "a blue square left of a red circle"),
        ("a ring below a cross", "a cross above a ring"),
        ("a ring and a red circle", "a red circle and a ring"),
        ("a blue ring at the top", "a blue ring at the top"),
        ("three crosses", "three crosses"),
    ],
)
def test_two_things_are_said_in_one_order(told: str, said: str) -> None:
    assert in_order(parse(told)).text == said == in_order(parse(said)).text


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (EVERYTHING, "a red circle left of a blue square"),
        ((True, False, False), "a red circle and a blue square"),
        ((False, True, False), "a circle left of a square"),
        ((False, False, True), "a circle and a square"),
    ],
)
def test_a_question_asks_for_parts(wanted: tuple[bool, bool, bool], said: str) -> None:
    assert part_of(parse("a red circle left of a blue square"), *wanted).text == said


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("a red circle right of a blue square", "a  blue square red circle _ _ _ _  _ _ _ _"),
        ("a circle above a blue ring", "a  _ _ _ _ _ circle blue ring  _ _ _ _"),
        ("a ring and a red circle", "a  _ _ _ _ _ _ _ _  red circle _ ring"),
        ("a red ring at the top", "a  _ _ _ _ red ring _ _  _ _ _ _"),
        ("three red crosses", "three  _ _ _ _ _ _ _ _  red cross _ _"),
        ("crosses", "_  _ _ _ _ _ _ _ _  _ cross _ _"),
    ],
)
def test_a_word_stands_where_what_it_tells_is_to_be_drawn(told: str, words: str) -> None:
    assert form(parse(told)) == tuple("" if word == "_" else word for word in words.split())


def test_a_lesson_is_a_function_of_its_number(tokenizer: OpenUniTokenizer) -> None:
    """So a stopped course goes on with the lessons that it would have had."""
    lessons, again = (Lessons(tokenizer, CONFIG.picture_tokens, count=32, seed=1) for _ in range(2))
    lesson, same, other = lessons.draw(7, 6), again.draw(7, 6), lessons.draw(8, 6)
    assert lesson.prompts == same.prompts and lesson.said.equal(same.said) and lesson.pictures.equal(same.pictures)
    assert lesson.prompts != other.prompts
    assert len(lesson.prompts) == 18 and lesson.said.shape == (18, CONFIG.num_queries)
    assert lesson.said[:6].equal(lesson.said[6:12])  # pictures, and texts of the same
    pictures = [prompt.count(tokenizer.picture) for prompt in lesson.prompts]
    assert pictures == [CONFIG.picture_tokens] * 6 + [0] * 12
