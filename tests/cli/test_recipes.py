"""`reca-fast recipes`: the shipped recipes listed, shown and copied."""

import pytest

from reca_fast.cli.options import parse
from reca_fast.config import RunConfig
from reca_fast.config.recipes import shipped

NAMES = ", ".join(sorted(name for name in shipped() if "/" not in name))


@pytest.mark.parametrize("args", [[], ["list"]])
def test_the_list_says_what_each_recipe_is_for(args, reca_fast) -> None:
    said = reca_fast("recipes", *args)
    lines = dict(line.split(maxsplit=1) for line in said.out.splitlines() if line.startswith("  "))
    assert said.code == 0 and lines.keys() == shipped().keys()
    titles = [line for line in said.out.splitlines() if line and not line.startswith("  ")]
    assert titles == ["for a published model:", "tiny, for a first try:", "ablations:", "proof:"]
    assert all(len(purpose) > 20 and purpose.endswith(".") for purpose in lines.values())


def test_a_recipe_is_shown_as_it_is(reca_fast) -> None:
    assert reca_fast("recipes", "show", "tiny-bagel").out == shipped()["tiny-bagel"].read_text()


def test_a_copy_trains_like_the_recipe(reca_fast, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for given, written in (
        ([], "tiny-bagel.yaml"),
        (["mine.yaml"], "mine.yaml"),
        (["folder"], "folder/tiny-bagel.yaml"),
    ):
        said = reca_fast("recipes", "copy", "tiny-bagel", *given)
        assert said.code == 0 and said.out.startswith(f"{written}: a copy of the recipe tiny-bagel.")
        assert parse(RunConfig, "train", ["--config", written]) == parse(RunConfig, "train", ["--config", "tiny-bagel"])


def test_a_copy_overwrites_nothing(reca_fast, tmp_path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("steps: 7\n")
    assert f"{mine} exists and is not overwritten" in reca_fast("recipes", "copy", "tiny-bagel", mine).sentence
    assert mine.read_text() == "steps: 7\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("shw tiny-bagel", "recipes shw: it can list, show, copy. Did you mean 'show'?"),
        ("show", f"recipes show takes a name: one of {NAMES}"),
        ("copy", f"recipes copy takes a name: one of {NAMES}"),
        ("show nope", f"There is no recipe 'nope', only one of {NAMES} and those of"),
        ("list tiny-bagel", "`reca-fast recipes show tiny-bagel` prints one recipe"),
        ("show tiny-bagel x.yaml", "`reca-fast recipes copy tiny-bagel FILE` writes one"),
        ("copy tiny-bagel /nowhere/x.yaml", "/nowhere/x.yaml cannot be written: No such file or directory"),
    ],
)
def test_mistakes_are_told_with_the_way_out(args, says, reca_fast) -> None:
    assert says in reca_fast("recipes", *args.split()).sentence
