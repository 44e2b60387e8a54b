"""The detector sees what was drawn, and nothing else."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from reca_fast.toy import COLOURS, SHAPES, SIDE, Scene, Thing, detect, render, render_many, scene_of
from reca_fast.toy.calibration import calibrate
from reca_fast.toy.captions import requirement_of
from reca_fast.toy.scores import satisfies

FEWEST_ACCEPTED, MOST_FALSE = 0.999, 0.002


def test_pictures_pass_with_their_own_captions_and_not_with_others() -> None:
    own, false, _ = calibrate("validation", 600)
    assert own.share >= FEWEST_ACCEPTED and false.share <= MOST_FALSE and false.count > 500


@pytest.mark.exhaustive
@pytest.mark.parametrize("pool", ["base", "posttraining", "validation"])
def test_the_detector_is_nearly_never_wrong_and_fast(pool: str) -> None:
    """What docs/toy.md says."""
    own, false, milliseconds = calibrate(pool, 2000)
    assert own.share >= FEWEST_ACCEPTED and false.share <= MOST_FALSE and milliseconds < 4


def accepted(pictures: np.ndarray, scenes: list[Scene]) -> float:
    pairs = zip(scenes, detect(pictures), strict=True)
    return sum(satisfies(requirement_of(scene), found) for scene, found in pairs) / len(scenes)


def test_it_tolerates_what_models_draw() -> None:
    """Pictures that are blurred, noisy or dark: what small models draw is never as clean as what was rendered."""
    scenes = [scene_of("validation", index) for index in range(200)]
    pictures = render_many(scenes, "validation", range(200))
    blurred = [np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(0.7))) for picture in pictures]
    noise = np.random.Generator(np.random.Philox(0)).normal(0, 0.05 * 255, pictures.shape)
    assert accepted(np.stack(blurred), scenes) >= 0.99
    assert accepted(np.clip(pictures + noise, 0, 255).astype(np.uint8), scenes) >= 0.99
    assert accepted((0.7 * pictures).astype(np.uint8), scenes) >= 0.99


def test_it_finds_where_things_are() -> None:
    scene = Scene((Thing("ring", "cyan"), Thing("cross", "red")), "above")
    ring, cross = sorted(detect(render(scene, "validation", 3)[None])[0], key=lambda thing: thing.y)
    assert (ring.shape, ring.colour, cross.shape, cross.colour) == ("ring", "cyan", "cross", "red")
    assert np.allclose([ring.x, ring.y, cross.x, cross.y], [0.5, 0.25, 0.5, 0.75], atol=0.05)
    area = {thing.shape: thing.cells / SIDE**2 for thing in (ring, cross)}
    assert abs(area["ring"] - np.pi * (1 - 0.58**2) * 0.19**2) < 0.03


def test_it_knows_every_shape_in_every_colour() -> None:
    things = [Thing(shape, colour) for shape in SHAPES for colour in COLOURS]
    pictures = render_many([Scene((thing,), "left") for thing in things], "validation", range(len(things)))
    assert [[(f.shape, f.colour) for f in found] for found in detect(pictures)] == [
        [(t.shape, t.colour)] for t in things
    ]


def test_what_is_no_thing_has_no_shape_or_is_not_found() -> None:
    pictures = np.full((5, SIDE, SIDE, 3), 60, np.uint8)
    pictures[1, 3:5, 3:6] = (230, 30, 30)  # 6 pixels: too few
    pictures[2, 10:12, 2:22] = (230, 30, 30)  # a bar
    pictures[3, :, :12], pictures[3, :, 12:] = (230, 30, 30), (45, 65, 235)  # two halves
    pictures[4, 4:12, 4:12], pictures[4, 12:20, 12:20] = (230, 30, 30), (230, 30, 30)  # they touch at a corner only
    found = detect(pictures)
    assert [[thing.shape for thing in things] for things in found] == [
        [],
        [],
        [None],
        [None, None],
        ["square", "square"],
    ]
    assert [thing.colour for thing in found[3]] in (["red", "blue"], ["blue", "red"])
    assert detect(pictures[:0]) == []


def test_it_sees_larger_pictures_as_well() -> None:
    scenes = [scene_of("validation", index) for index in range(40)]
    assert accepted(render_many(scenes, "validation", range(40), side=32), scenes) >= 0.97


def test_pictures_of_another_kind_are_refused() -> None:
    for wrong in (
        np.zeros((1, 24, 24, 3), np.float32),
        np.zeros((24, 24, 3), np.uint8),
        np.zeros((1, 24, 20, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match="pictures are uint8"):
            detect(wrong)
