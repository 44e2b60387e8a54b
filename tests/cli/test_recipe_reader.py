"""Recipes: YAML files under the options of the command line, read through types, and unable to run anything."""

import re
from collections.abc import Iterator
from functools import reduce
from typing import Any

import pytest
from PIL import Image

from reca_fast.cli.options import parse
from reca_fast.cli.recipe_reader import Layer, read_recipe
from reca_fast.config import RunConfig
from reca_fast.config.recipes import shipped
from reca_fast.config.rules import check_run

pytestmark = pytest.mark.usefixtures("one_thread")


def train_config(*args: str) -> RunConfig:
    return parse(RunConfig, "train", args)


def test_options_override_the_recipe_whatever_their_order(tmp_path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("optim: {lr: 1.0e-3, warmup_steps: 7}\ndata: {tasks: {t2i: 0.5}}\nsteps: 12\n")
    for args in (["--config", str(recipe), "--optim.lr", "2e-3"], ["--optim.lr=2e-3", f"--config={recipe}"]):
        config = train_config(*args)
        assert (config.optim.warmup_steps, config.data.tasks.t2i, config.steps) == (7, 0.5, 12)
        assert config.data.tasks.reca == 1.0 and config.optim.betas == (0.9, 0.95)
    assert train_config("--config", str(recipe), "--optim.lr", "2e-3").optim.lr == 2e-3


def test_later_recipe_wins(tmp_path) -> None:
    for name, text in (("a", "steps: 1\nseed: 5"), ("b", "steps: 2")):
        (tmp_path / f"{name}.yaml").write_text(text)
    config = train_config("--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"))
    assert (config.steps, config.seed) == (2, 5)


def test_a_recipe_builds_on_a_shipped_one(tmp_path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: bagel\ndata: {target_resize: {max_size: 512}}\nsteps: 12\n")
    mine, bagel = train_config("--config", str(recipe)), train_config("--config", "bagel")
    assert (mine.steps, mine.data.target_resize.max_size) == (12, 512)
    mine.steps, mine.data.target_resize.max_size = bagel.steps, bagel.data.target_resize.max_size
    assert mine == bagel


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_parse_and_take_effect(name) -> None:
    """They parse, by name, and what they name takes effect."""
    recipe = read_recipe(name)
    stages: list[Layer | None] = [layer for _, layer in recipe.stages]
    for stage in stages or [None]:
        config = parse(RunConfig, "train", ["--config", name], stage=stage)
        check_run(config, processes=1)
        for option, value in leaves((stage or recipe.layers[-1]).content):
            found = reduce(getattr, option.split("."), config)
            assert (list(found) if isinstance(found, tuple) else found) == value, option


def leaves(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        elif prefix + name != "sampling.preset":
            yield prefix + name, value


def test_a_training_recipe_serves_every_verb(tiny_folder, reca_fast, tmp_path) -> None:
    """`generate` takes model and sampling from it and leaves the rest alone."""
    recipe = tmp_path / "run.yaml"
    recipe.write_text(f"model: {{path: {tiny_folder}, precision: fp32}}\nsampling: {{steps: 2}}\noptim: {{lr: 1.0}}\n")
    size = ["--width", "16", "--height", "24", "--device", "cpu"]
    said = reca_fast("generate", "--config", recipe, "--prompt", "a cat", "--out", tmp_path / "out", *size)
    lines = [f"weights: {tiny_folder / 'ema.safetensors'}", f"{tmp_path / 'out' / '0000.png'}: a cat"]
    assert said.code == 0 and said.out.splitlines() == lines
    assert Image.open(tmp_path / "out" / "0000.png").size == (16, 24)


RECIPE_MISTAKES = {
    "key": ("stepz: 3", r"Unknown option 'stepz'\. Did you mean 'steps'\?"),
    "nested key": ("optim: {lrr: 3}", r"Unknown option 'optim\.lrr'\. Did you mean 'optim\.lr'\?"),
    "deep key": (
        "data: {tasks: {recca: 1}}",
        r"Unknown option 'data\.tasks\.recca'\. Did you mean 'data\.tasks\.reca'\?",
    ),
    "type": ("steps: many", r"steps.*many"),
    "nested type": ("optim: {lr: fast}", r"optim\.lr.*fast"),
    "value for a group": ("optim: 3", "'optim' is a group of options"),
    "value for an inner group": ("data: {tasks: 3}", r"'data\.tasks' is a group of options"),
    "list": ("- steps", "holds no options"),
    "no YAML": ("steps: [", "is not YAML"),
    "no value": ("steps:", r"gives option 'steps' no value; write one, or remove the line"),
    "no nested value": ("optim:\n  lr:", r"gives option 'optim\.lr' no value"),
    "a lone tilde": ("out: ~", r"gives option 'out' no value; .* write ~/ for your home folder"),
    "no section": ("optim:", r"Option 'optim' is a group of options \(name: value\), not None"),
    "nesting": ("steps: " + "[" * 2000, "nests deeper than 50 levels"),
    "nesting of blocks": ("- " * 3000, "nests deeper than 50 levels"),
    "alias": ("a: &a [x, x]\nb: [*a, *a]", r"refers to another place of itself \(\*a\)"),
    "twice": ("steps: 1\nsteps: 2", "it sets 'steps' twice"),
    "number as a name": ("1: 2", "holds 1 in the place of an option's name"),
    "list as a name": ("? [a]\n: 2", "unhashable key"),
    "switch for a number": ("steps: yes", r"steps.*Expected a whole number.*True"),
    "switch for a fraction": ("optim: {lr: true}", r"optim\.lr.*Expected a number.*True"),
    "below the range": ("optim: {lr: -1}", r"optim\.lr=-1\.0: it must be at least 0"),
    "at the open end of the range": ("optim: {eps: 0}", r"optim\.eps=0\.0: it must be at most .* and above 0"),
    "beyond the range": (f"steps: {10**30}", r"steps=1000.*: it must be at least 1 and at most"),
    "digits without end": (f"steps: {'9' * 5000}", "is not YAML: Exceeds the limit"),
    "infinity": ("optim: {lr: .inf}", r"optim\.lr"),
    "a class to import": ("model: {class_path: antigravity}", r"Unknown option 'model\.class_path'"),
    "a tag": ("steps: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    "another recipe": ("config: other.yaml", "Unknown option 'config'"),
    "a file for a group": ("data: other.yaml", "'data' is a group of options"),
    "size": ("# " + "x" * 2**16, "is larger than 65,536 bytes"),
}


@pytest.mark.parametrize("mistake", RECIPE_MISTAKES)
def test_mistakes_in_a_recipe(mistake, reca_fast, tmp_path) -> None:
    text, message = RECIPE_MISTAKES[mistake]
    (tmp_path / "mine.yaml").write_text(text)
    assert re.search(message, reca_fast("train", "--config", tmp_path / "mine.yaml").sentence)


def test_a_recipe_imports_nothing(reca_fast, tmp_path, monkeypatch) -> None:
    """jsonargparse would import what class_path names, to see whether it is a subclass."""
    (tmp_path / "planted_module.py").write_text("raise SystemExit('planted')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.yaml").write_text("model: {class_path: planted_module.X}")
    assert "Unknown option" in reca_fast("train", "--config", tmp_path / "mine.yaml").sentence
    assert "Unknown option" in reca_fast("train", "--model", "{class_path: planted_module.X}").sentence


def test_numbers_of_a_recipe_are_decimal(tmp_path) -> None:
    """YAML 1.1 would read octal, and take 1e-4 for text."""
    (tmp_path / "mine.yaml").write_text("steps: 0100\nseed: 1_000\noptim: {lr: 1e-4, weight_decay: .5}\nresume: no")
    config = train_config("--config", str(tmp_path / "mine.yaml"))
    assert (config.steps, config.seed, config.optim.lr, config.optim.weight_decay) == (100, 1000, 1e-4, 0.5)
    assert config.resume is False


@pytest.mark.parametrize("option", ["out", "data.source", "model.path"])
def test_a_path_with_nul_in_a_recipe(option, reca_fast, tmp_path) -> None:
    value = '"a\\0b"'
    for part in reversed(option.split(".")):
        value = f"{{{part}: {value}}}"
    (tmp_path / "mine.yaml").write_text(value)
    assert (
        f"{option}='a\\x00b': no path holds the character NUL"
        in reca_fast("train", "--config", tmp_path / "mine.yaml").sentence
    )
