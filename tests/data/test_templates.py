"""Templates: many, distinct, well formed, of the lengths that training needs; and the hash that draws them."""

import re
import subprocess
import sys
from collections import Counter

import pytest

from reca_fast.data.captions import choose_caption
from reca_fast.data.templates import choose_template, some_templates, templates
from reca_fast.errors import UserError
from reca_fast.randomness import stable_uniform


def test_there_are_enough_distinct_templates() -> None:
    assert len(templates()) == len(set(templates())) >= 360


def test_templates_are_well_formed() -> None:
    for text in templates():
        assert re.fullmatch(r"[A-Z][A-Za-z ,:;]*[.?]", text), text
        assert "  " not in text and " ," not in text
        assert "picture" in text or "image" in text, text
        questions = ("What", "How", "Which")
        assert text.endswith("?") == (text.startswith(questions) or "; what would" in text), text
        assert not re.search(r"\b(\w+) \1\b", text), text


def test_lengths_run_from_three_words_to_forty() -> None:
    lengths = [len(text.split()) for text in templates()]
    assert min(lengths) == 3
    assert 35 <= max(lengths) <= 45
    assert 15 <= sum(lengths) / len(lengths) <= 20


def test_hash_is_fixed_for_all_time() -> None:
    # A changed value would change the data order of every run that is resumed.
    assert stable_uniform("template", 42, 0, "a.jpg") == 0.3485381398909265
    assert stable_uniform("ab", "c") != stable_uniform("a", "bc")
    assert 0 <= stable_uniform("\udcff") < 1  # a file name that is not UTF-8


def test_hash_is_uniform() -> None:
    tenths = Counter(int(stable_uniform("draw", i) * 10) for i in range(20_000))
    assert set(tenths) == set(range(10))
    assert all(1800 <= count <= 2200 for count in tenths.values())


def test_choice_depends_on_seed_epoch_and_key_alone() -> None:
    keys = [f"{i}.jpg" for i in range(4000)]
    drawn = [choose_template(1, 0, key, templates()) for key in keys]
    assert drawn == [choose_template(1, 0, key, templates()) for key in keys]
    assert drawn != [choose_template(2, 0, key, templates()) for key in keys]
    assert drawn != [choose_template(1, 1, key, templates()) for key in keys]
    assert set(drawn) == set(templates())


def test_fewer_templates_are_a_part_of_more() -> None:
    few, more = some_templates(10), some_templates(360)
    assert len(set(few)) == 10 and len(set(more)) == 360 and more[:10] == few and set(more) <= set(templates())
    assert some_templates(0) == templates()
    assert some_templates(1) == ("Describe this image in detail.",)
    assert {choose_template(1, 0, f"{i}.jpg", few) for i in range(500)} == set(few)
    with pytest.raises(UserError, match=r"data\.templates=1000: there are \d+; set it to \d+ or less, or 0 for all"):
        some_templates(1000)


def test_one_of_several_captions_is_drawn_like_a_template() -> None:
    captions = ("a cup", "a red cup", "a red cup on a table")
    drawn = [choose_caption(captions, 1, 0, f"{i}.jpg") for i in range(3000)]
    assert all(900 <= count <= 1100 for count in Counter(drawn).values())
    assert drawn != [choose_caption(captions, 1, 1, f"{i}.jpg") for i in range(3000)]
    assert choose_caption("the only one", 1, 0, "a.jpg") == "the only one"


def test_templates_can_be_printed() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "reca_fast.data.templates"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines() == list(templates())
