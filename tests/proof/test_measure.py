"""Marks in the toy world: a model that draws what it is told has all of them, others have what they deserve."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reca_fast.config import DataConfig, ResizeConfig, SamplingConfig
from reca_fast.data.inputs import Plan
from reca_fast.errors import UserError
from reca_fast.proof.measure import ASKED, measure
from reca_fast.sample import Sample
from reca_fast.toy import RELATIONS, SHAPES, SIDE, Requirement, Scene, Thing, parse, render
from reca_fast.toy.world import DOMINANT

DATA = DataConfig(
    source="toy:base", condition_resize=ResizeConfig(SIDE, SIDE, 1), target_resize=ResizeConfig(SIDE, SIDE, 1)
)
FEW = {"count": 12, "batch": 32}


class Painter:
    """Draws every text as it is told, and pictures as it sees them. It has no weights, so nothing of it is learnt."""

    def __init__(self, deaf_to_colours: bool = False, blind: bool = False) -> None:
        self.deaf_to_colours, self.blind = deaf_to_colours, blind
        self.texts: list[str] = []
        self.asked: list[tuple[str, int]] = []  # (text or key, seed)
        self.guidance: list[tuple[bool, float | None]] = []  # (whether there is a condition, guidance)

    def tokenize(self, text: str) -> list[int]:
        self.texts.append(text)
        return [len(self.texts) - 1]

    def inputs(self, data: DataConfig) -> "Painter":
        assert data.source == "toy:validation" and data.text_dropout == 0
        return self

    def plan(self, tasks, size, text) -> Plan:
        return Plan((SIDE, SIDE), (SIDE, SIDE), 1)

    def sample(self, conditions: Sequence[Sample], sizes, sampling: SamplingConfig, seeds) -> list[Tensor]:
        assert set(sizes) == {(SIDE, SIDE)} and len(conditions) == len(seeds) == len(sizes)
        return [self.draw(*each, sampling) for each in zip(conditions, seeds, strict=True)]

    def draw(self, sample: Sample, seed: int, sampling: SamplingConfig) -> Tensor:
        self.guidance.append((sample.condition is not None, sampling.guidance))
        text = self.texts[sample.text.ids[0]]
        self.asked.append((sample.key or text, seed))
        if sample.condition is not None:
            return torch.zeros_like(sample.condition) if self.blind else sample.condition
        return torch.from_numpy(render(self.scene(parse(text)), "validation", len(self.asked)))

    def scene(self, wanted: Requirement) -> Scene:
        things = [
            Thing(t.shape, DOMINANT[t.shape] if self.deaf_to_colours else t.colour or DOMINANT[t.shape])
            for t in wanted.things
        ]
        if len(things) == 2:
            return Scene(tuple(things), wanted.relation or next(iter(RELATIONS)))
        return Scene((things[0],) * (wanted.number or 2), "" if wanted.number != 1 else wanted.relation or "left")


def test_who_draws_what_is_asked_has_every_mark():
    steps = []
    found = measure(Painter(), SamplingConfig(), DATA, **FEW, progress=lambda *step: steps.append(step))
    assert {name: score.value for name, score in found.scores.items() if score.value < 1} == {}
    assert found.scores.keys() >= {*ASKED, "overall", "dense.colours_only", "dense.colour_layout"}
    assert all(found.scores[subtask].count == 12 for subtask in ASKED)
    assert found.psnr.value == 100 and found.psnr.count == 12
    total = 12 * len(ASKED)
    assert len(found.drawn) == total and steps[-1] == (total, total) and len(steps) == 4
    assert all(each.passed for each in found.of("dense")) and len(found.of("dense")) == 12


def test_who_draws_every_circle_red_fails_where_colours_are_asked():
    """And where its favourites are drawn, nothing is lost."""
    scores = measure(Painter(deaf_to_colours=True), SamplingConfig(), DATA, **FEW).scores
    for subtask in ("colour", "attribution", "held_out", "dense"):
        assert scores[subtask].value == 0 and scores[f"{subtask}.colours_only"].value == 0
    for subtask in ("single", "two", "count", "position"):
        assert scores[subtask].value == 1
    assert scores["overall"].value == pytest.approx(4 / 6)


def test_who_does_not_see_reconstructs_nothing():
    found = measure(Painter(blind=True), SamplingConfig(), DATA, **FEW, subtasks=["reconstruction"])
    assert found.scores["reconstruction"].value == 0 and found.psnr.value < 20
    assert all(each.original is not None and not each.passed for each in found.of("reconstruction"))


def test_noise_depends_on_subtask_and_number_alone():
    """Not on the batch, nor on what else is asked; every picture has its own, and another seed other noise."""

    def asked(**options):
        painter = Painter()
        measure(painter, SamplingConfig(seed=5), DATA, **{**FEW, **options})
        return painter.asked

    everything = asked()
    seeds = [seed for _, seed in everything]
    assert len(set(seeds)) == len(seeds)
    assert asked(batch=5) == everything
    assert asked(subtasks=["dense", "reconstruction"]) == everything[-24:]
    assert asked(subtasks=["count"], count=6) == everything[24:30]
    assert not set(seeds) & {seed for _, seed in asked(seed=1)}


def test_reconstructions_have_a_guidance_of_their_own():
    painter = Painter()
    measure(painter, SamplingConfig(guidance=3.0), DATA, count=2, subtasks=["single", "reconstruction"])
    assert painter.guidance == [(False, 3.0)] * 2 + [(True, 1.0)] * 2


def test_whatever_a_recipe_trains_from_is_left_out(tmp_path):
    data = replace(DATA, cache=str(tmp_path / "cache"), text_dropout=0.5, instructions="talks.json", serve="all")
    assert measure(Painter(), SamplingConfig(), data, count=1, subtasks=["reconstruction"]).psnr.value == 100


def test_pictures_are_asked_for_by_their_complete_description():
    """Whatever sentences a recipe trains with, of which some may ask for less."""
    painter = Painter()
    data = replace(DATA, own_templates=("Name the shapes.",), templates=0, limit=1)
    measure(painter, SamplingConfig(), data, count=4, subtasks=["reconstruction"])
    assert set(painter.texts) == {"Describe this image in detail."} and len(painter.asked) == 4


def test_a_report_is_plain_json():
    found = measure(Painter(), SamplingConfig(steps=3), DATA, count=len(SHAPES), subtasks=["single"])
    report = json.loads(json.dumps(found.report()))
    assert report["scores"]["single"] == {"value": 1.0, "low": pytest.approx(0.566, abs=0.01), "high": 1.0, "count": 5}
    assert report["sampling"]["steps"] == 3 and report["psnr"] is None and "overall" not in report["scores"]


def test_an_unknown_subtask_is_one_sentence():
    with pytest.raises(UserError, match=r"colour"):
        measure(Painter(), SamplingConfig(), DATA, count=1, subtasks=["color"])
