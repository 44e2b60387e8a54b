"""`reca-fast recipes`: which recipes ship with the package, what is in them, and copies to start an own one from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from reca_fast.cli.options import parse
from reca_fast.cli.recipe_reader import choice_of
from reca_fast.config import Place
from reca_fast.config.recipes import shipped
from reca_fast.errors import UserError, did_you_mean, writing

Action = Literal["list", "show", "copy"]
POSITIONAL = {
    "action": "list: every recipe in one line; show NAME: print one; copy NAME [FILE]: write one to a file",
    "name": "Which recipe to show or to copy",
    "file": "Where the copy goes: a file that does not exist yet, or a folder; NAME.yaml by default",
}


@dataclass
class RecipesOptions:
    action: str = "list"
    name: str = ""
    file: Place = ""


def main(args: Sequence[str]) -> int:
    options = parse(RecipesOptions, "recipes", args, positional=POSITIONAL)
    if options.action not in get_args(Action):
        hint = did_you_mean(options.action, get_args(Action))
        raise UserError(f"recipes {options.action}: it can {', '.join(get_args(Action))}.{hint}")
    recipes = shipped()
    if options.action == "list":
        if options.name:
            raise UserError(f"recipes list takes no name; `reca-fast recipes show {options.name}` prints one recipe.")
        width = max(map(len, recipes))
        for number, (title, names) in enumerate(grouped(recipes)):
            print(f"{chr(10) * (number > 0)}{title}:")
            for name in names:
                print(f"  {name:<{width}}  {purpose(recipes[name])}")
        return 0
    if not options.name:
        raise UserError(f"recipes {options.action} takes a name: {choice_of('')}")
    if options.name not in recipes:
        raise UserError(f"There is no recipe {options.name!r}, only {choice_of(options.name)}")
    if options.action == "show":
        if options.file:
            raise UserError(f"recipes show takes no file; `reca-fast recipes copy {options.name} FILE` writes one.")
        print(recipes[options.name].read_text(), end="")
        return 0
    target = copy(recipes[options.name], Path(options.file or recipes[options.name].name))
    print(f"{target}: a copy of the recipe {options.name}. Change it, then `reca-fast train --config {target}`.")
    return 0


def grouped(recipes: Iterable[str]) -> list[tuple[str, list[str]]]:
    """(title, names) of the groups in which recipes are listed."""
    groups: dict[str, list[str]] = {"for a published model": [], "tiny, for a first try": [], "ablations": []}
    for name in sorted(recipes):
        tiny = name.startswith(("tiny-", "toy"))
        title = name.partition("/")[0] if "/" in name else "tiny, for a first try" if tiny else "for a published model"
        groups.setdefault(title, []).append(name)
    return [(title, names) for title, names in groups.items() if names]


def purpose(recipe: Path) -> str:
    """What a recipe is for, in one line: its first one, a comment."""
    return recipe.read_text().partition("\n")[0].removeprefix("#").strip()


def copy(recipe: Path, target: Path) -> Path:
    """Write a recipe to a new file, under its own name where `target` is a folder. Returns the file.

    Raises:
        UserError: there is a file of that name, which stays as it is; or it cannot be written.
    """
    if target.is_dir():
        target /= recipe.name
    with writing(target):
        try:
            with target.open("x") as file:
                file.write(recipe.read_text())
        except FileExistsError:
            raise UserError(f"{target} exists and is not overwritten; name another file, or remove it.") from None
    return target
