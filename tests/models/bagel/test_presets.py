"""Presets are the authors' settings, under every other option of the user's."""

from dataclasses import dataclass

import pytest

from reca_fast.cli.generate import GenerateOptions
from reca_fast.cli.options import parse
from reca_fast.config import PRESETS, SamplingConfig
from reca_fast.models.bagel.editing import BagelEditing
from reca_fast.models.bagel.sampling import BagelSampling

pytestmark = pytest.mark.usefixtures("one_thread")

AUTHORS = {
    "geneval": (50, 3.0, 4.0, 1.0, (0.0, 1.0), "global", 0.0),
    "dpg": (50, 3.0, 3.0, 1.0, (0.0, 1.0), "global", 0.0),
    "wise": (50, 3.0, 4.0, 1.0, (0.4, 1.0), "global", 0.0),
    "app": (50, 3.0, 4.0, 1.5, (0.4, 1.0), "global", 0.0),
    "notebook": (50, 3.0, 4.0, 1.0, (0.4, 1.0), "global", 1.0),
    "notebook-reconstruct": (50, 3.0, 4.0, 2.0, (0.0, 1.0), "text_channel", 1.0),
    "edit": (50, 3.0, 4.0, 2.0, (0.0, 1.0), "text_channel", 0.0),
    "imgedit": (50, 3.0, 4.0, 1.5, (0.0, 1.0), "text_channel", 0.0),
    "gedit": (50, 3.0, 4.0, 1.5, (0.4, 1.0), "text_channel", 0.0),
}


def parsed(*args: str) -> SamplingConfig:
    return parse(GenerateOptions, "generate", ["--prompt", "x", *args]).sampling


@pytest.mark.parametrize("name", AUTHORS)
def test_a_preset_is_what_the_authors_set(name) -> None:
    assert PRESETS.keys() == AUTHORS.keys()
    steps, *settings = vars(parsed("--sampling.preset", name).filled(BagelSampling)).values()
    assert (steps + 1, *settings) == AUTHORS[name]


def test_an_edit_is_drawn_as_the_preset_edit_says() -> None:
    assert SamplingConfig().filled(BagelEditing) == parsed("--sampling.preset", "edit").filled(BagelEditing)


def test_a_preset_overrides_recipes_and_yields_to_every_other_option(tmp_path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("sampling: {preset: dpg, steps: 30}\n")
    assert (parsed("--config", str(recipe)).guidance, parsed("--config", str(recipe)).steps) == (3.0, 30)
    for args in (
        ["--sampling.preset", "wise", "--config", "tiny-bagel", "--sampling.guidance", "2", "--sampling.seed", "7"],
        ["--sampling.seed=7", "--sampling.guidance=2", "--config=tiny-bagel", "--sampling.preset=wise"],
    ):
        got = parsed(*args)
        assert (got.steps, got.timestep_shift, got.guidance_interval) == (49, 3.0, (0.4, 1.0))  # not the demo's 20
        assert (got.guidance, got.seed) == (2.0, 7)


def test_a_preset_fills_what_is_not_set_and_only_for_the_model_that_it_is_of() -> None:
    @dataclass
    class Other:
        steps: int = 20
        guidance: float = 4.5

    given = SamplingConfig(guidance=2.0, seed=5).with_preset("gedit", BagelEditing)
    assert given is not None and (given.guidance, given.seed) == (2.0, 5)
    assert (given.image_guidance, given.guidance_interval) == (1.5, (0.4, 1.0))
    assert SamplingConfig().with_preset("gedit", Other) is None


def test_an_unknown_preset_is_named(reca_fast, tmp_path) -> None:
    said = reca_fast("generate", "--prompt", "x", "--sampling.preset", "gen-eval").sentence
    assert "there is no preset 'gen-eval', only geneval, dpg, wise" in said
    (tmp_path / "recipe.yaml").write_text("sampling: {preset: [1]}\n")
    assert "no preset [1]" in reca_fast("generate", "--config", tmp_path / "recipe.yaml").sentence
