"""Captions of the toy world: dense ones tell the whole scene, sparse ones nearly nothing but shapes."""

import pytest

from reca_fast.toy import POOLS, WORDS, Scene, Thing, canonical, captions_of, parse, requirement_of, scene_of
from reca_fast.toy.captions import SAYS_NUMBER, SAYS_PLACE, scene_as, turned
from reca_fast.toy.world import COLOURS

MANY = 2000


def test_a_dense_caption_tells_its_scene() -> None:
    orders = set()
    for pool in POOLS:
        for index in range(300):
            scene = scene_of(pool, index)
            told = scene_as(parse(captions_of(scene, pool, index)["dense"]))
            assert told in (scene, turned(scene))
            assert scene_as(parse(canonical(scene))) in (scene, turned(scene))
            assert canonical(scene) == canonical(turned(scene))
            orders.add(told == scene)
    assert orders == {True, False}


def test_captions_read_as_they_should() -> None:
    pair = Scene((Thing("circle", "red"), Thing("square", "blue")), "right of")
    assert requirement_of(pair).text == "a red circle right of a blue square"
    assert canonical(pair) == "a blue square left of a red circle"
    assert canonical(Scene((Thing("cross", "cyan"),), "top")) == "a cyan cross at the top"
    assert canonical(Scene((Thing("cross", "red"),) * 3)) == "three red crosses"
    for text in ("a circle", "rings", "two rings", "red rings", "a circle and a red ring", "a ring above a cross"):
        assert parse(text).text == text
    for text in (
        "",
        "a",
        "a red",
        "circle",
        "a ring ring",
        "five rings",
        "a ring below",
        "two ring",
        "a ring near a cross",
    ):
        with pytest.raises(ValueError, match="no caption of the toy world"):
            parse(text)
    with pytest.raises(ValueError, match="more than one scene"):
        scene_as(parse("a circle and a ring"))


@pytest.mark.parametrize(("pool", "mentions"), [("base", 0.15), ("posttraining", 0.03)])
def test_a_sparse_caption_says_shapes_and_seldom_more(pool: str, mentions: float) -> None:
    colours = things = places = numbers = several = 0
    for index in range(MANY):
        scene = scene_of(pool, index)
        captions = captions_of(scene, pool, index)
        assert captions == captions_of(scene, pool, index)
        sparse, dense = parse(captions["sparse"]), parse(captions["dense"])
        assert [thing.shape for thing in sparse.things] == [thing.shape for thing in dense.things]
        assert all(a.colour in (None, b.colour) for a, b in zip(sparse.things, dense.things, strict=True))
        assert sparse.relation in ("", dense.relation) and sparse.number in (0, dense.number)
        assert {*captions["sparse"].split(), *captions["dense"].split()} <= set(WORDS)
        colours += sum(thing.colour is not None for thing in sparse.things)
        things += len(sparse.things)
        places += bool(sparse.relation)
        several += scene.relation == ""
        numbers += scene.relation == "" and sparse.number > 0
    assert abs(colours / things - mentions) < 0.03
    assert abs(places / (MANY - several) - SAYS_PLACE) < 0.04
    assert abs(numbers / several - SAYS_NUMBER) < 0.1


def test_every_word_is_needed_and_there_are_few() -> None:
    dense = [captions_of(scene_of("understanding", i), "understanding", i)["dense"] for i in range(MANY)]
    words = {word for text in [*dense, "a ring and a cross"] for word in text.split()}
    assert words == set(WORDS) and len(WORDS) == len(words) and set(COLOURS) <= words
    assert max(len(text.split()) for text in dense) == 8
