"""Pictures of the toy world: by number alone, biased where a base learns, held out where anything is drawn."""

from collections import Counter

import numpy as np
import pytest

from reca_fast.errors import UserError
from reca_fast.toy import COLOURS, POOLS, RELATIONS, SHAPES, SIDE, Scene, Thing, render, render_many, scene_of
from reca_fast.toy.world import BIAS, DOMINANT, HELD_OUT

MANY = 3000
RECORDED = Scene((Thing("triangle", "blue"),), "right")
RECORDED_MEAN = (83.79, 86.67, 105.19)
"""What picture 7 of validation shows, and the mean of its red, green and blue."""


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return {pool: [scene_of(pool, index) for index in range(MANY)] for pool in POOLS}


def kinds(scenes: list[Scene]) -> Counter[Thing]:
    """How many scenes show each thing."""
    return Counter(thing for scene in scenes for thing in set(scene.things))


def test_a_picture_is_a_function_of_its_pool_and_number(scenes: dict[str, list[Scene]]) -> None:
    """Alone or among others, forwards or backwards, and whatever numpy's own generator has drawn."""
    numbers = list(range(40))
    together = render_many([scenes["understanding"][n] for n in numbers], "understanding", numbers)
    assert together.shape == (40, SIDE, SIDE, 3) and together.dtype == np.uint8
    for number in reversed(numbers):
        np.random.seed(number)
        scene = scene_of("understanding", number)
        assert scene == scenes["understanding"][number]
        assert np.array_equal(render(scene, "understanding", number), together[number])
    assert not np.array_equal(render(scene, "understanding", 0), render(scene, "understanding", 1))
    assert not np.array_equal(render(scene, "posttraining", 0), render(scene, "validation", 0))


def test_a_recorded_picture_is_drawn_again() -> None:
    """The same numbers in every process and release: results that were published can be had again."""
    assert scene_of("validation", 7) == RECORDED
    picture = render(RECORDED, "validation", 7).astype(int)
    assert abs(picture.mean(axis=(0, 1)) - RECORDED_MEAN).max() < 0.05


def test_a_held_out_colour_is_seen_by_the_understanding_alone(scenes: dict[str, list[Scene]]) -> None:
    held_out = {Thing(shape, colour) for shape, colour in HELD_OUT.items()}
    for pool in ("base", "posttraining", "validation"):
        assert not held_out & kinds(scenes[pool]).keys()
    everything = {Thing(shape, colour) for shape in SHAPES for colour in COLOURS}
    assert kinds(scenes["understanding"]).keys() == everything
    assert kinds(scenes["posttraining"]).keys() == kinds(scenes["base"]).keys() == everything - held_out


def test_a_base_sees_nearly_every_shape_in_its_dominant_colour(scenes: dict[str, list[Scene]]) -> None:
    for pool, share in (("base", BIAS), ("posttraining", 1 / 5), ("understanding", 1 / 6)):
        counts = kinds(scenes[pool])
        for shape, colour in DOMINANT.items():
            assert colour != HELD_OUT[shape]
            seen = sum(count for thing, count in counts.items() if thing.shape == shape)
            assert abs(counts[Thing(shape, colour)] / seen - share) < 4 * (share * (1 - share) / seen) ** 0.5


def test_scenes_have_one_thing_or_a_pair_or_several_equal_ones(scenes: dict[str, list[Scene]]) -> None:
    counts: Counter[str] = Counter()
    for scene in scenes["posttraining"]:
        shapes = {thing.shape for thing in scene.things}
        if len(scene.things) == 1:
            counts["single"] += scene.relation in ("left", "right", "top", "bottom")
        elif scene.relation:
            counts["pair"] += len(shapes) == len(scene.things) == 2 and scene.relation in RELATIONS
        else:
            counts[f"{len(scene.things)} equal"] += len(set(scene.things)) == 1
    assert counts.total() == MANY and abs(counts["single"] / MANY - 0.35) < 0.03
    assert abs(counts["pair"] / MANY - 0.5) < 0.03
    assert all(abs(counts[f"{number} equal"] / MANY - 0.05) < 0.02 for number in (2, 3, 4))


def test_lengths_are_in_units_of_the_side() -> None:
    """A larger picture of the same scene shows the same things in the same places."""
    scene = Scene((Thing("circle", "red"), Thing("square", "blue")), "left of")
    for side in (SIDE, 2 * SIDE):
        picture = render(scene, "validation", 0, side).astype(int)
        assert picture.shape == (side, side, 3)
        red, blue = (picture[..., channel] - picture.mean(axis=-1) > 60 for channel in (0, 2))
        centres = [np.argwhere(mask).mean(axis=0) / side for mask in (red, blue)]
        assert np.allclose(centres, [[0.5, 0.25], [0.5, 0.75]], atol=0.04)
        assert abs(red.mean() - 3.14 * 0.19**2) < 0.03


def test_an_unknown_pool_is_one_sentence() -> None:
    for act in (lambda: scene_of("bases", 0), lambda: render(Scene((Thing("ring", "red"),), "left"), "bases", 0)):
        with pytest.raises(UserError, match=r"no pool 'bases'; its pools are understanding, .*Did you mean 'base'"):
            act()
    with pytest.raises(ValueError, match="numbered from 0"):
        scene_of("base", -1)
