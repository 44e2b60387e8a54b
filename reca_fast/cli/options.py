"""Typed options of a verb: a dataclass, filled from a YAML recipe and then from the command line (jsonargparse)."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn, TypeVar

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from reca_fast.cli import VERBS
from reca_fast.config import PRESETS, RunConfig
from reca_fast.errors import UserError, did_you_mean

RECIPES = Path(__file__).parent.parent / "recipes"
PRESET = "--sampling.preset"
PRESET_HELP = (
    "settings of the authors' scripts under one name, which the options below override: geneval, dpg, wise, app, "
    "notebook (RECA's text to image), notebook-reconstruct (RECA's picture to picture)"
)
T = TypeVar("T")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class OptionParser(ArgumentParser):
    """Raises UserError, with the nearest valid option, where the stock parser prints usage and exits."""

    def options(self) -> list[str]:
        """Every option by its dotted name."""
        return [name[2:] for name in self._option_string_actions if name.startswith("--")]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(str(message).split())
        if unknown := re.search(r"unrecognized arguments: -*([\w.]+)", text, re.IGNORECASE):
            name = unknown[1]
        elif inner := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text):
            name = f"{inner[1]}.{inner[2]}"
        elif top := re.search(r"(?:Key|option) ['\"]([\w.]+)['\"] is not (?:expected|accepted)", text, re.IGNORECASE):
            name = top[1]
        else:
            raise UserError(re.sub(r"<class '(\w+)'>|typing\.", r"\1", text.removeprefix("Parser key ")) + ".")
        raise UserError(f"Unknown option {name!r}.{did_you_mean(name, self.options())}")


def _recipe(value: str, accepted: set[str]) -> str:
    """The YAML text of a recipe, given by path or by the name of a shipped one.

    A training recipe serves every verb: sections that only `train` knows are left out for the others.
    """
    import yaml

    shipped = {path.stem: path for path in RECIPES.glob("*.yaml")}
    path = Path(value) if Path(value).is_file() else shipped.get(value)
    if path is None:
        raise UserError(f"There is no recipe {value!r}: neither a file nor one of {', '.join(sorted(shipped))}.")
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"The recipe {path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise UserError(f"The recipe {path} holds no options (name: value).")
    sampling = content.get("sampling")
    if isinstance(sampling, dict) and "preset" in sampling:
        content["sampling"] = _preset(sampling.pop("preset")) | sampling
    of_train = {field.name for field in fields(RunConfig)}
    return yaml.safe_dump({key: v for key, v in content.items() if key in accepted or key not in of_train})


def _preset(name: Any) -> dict[str, Any]:
    """Settings of the sampler under a preset's name."""
    if name not in list(PRESETS):  # a recipe may hold a list there, which has no place in a dict
        raise UserError(f"sampling.preset: there is no preset {name!r}, only {', '.join(PRESETS)}.")
    return dict(PRESETS[name])


def _expand(args: Sequence[str], switches: set[str], accepted: set[str]) -> list[str]:
    """Recipes become their text, so does a preset, and a bare switch (`--profile`) means true.

    Later ones win: the recipes, in their order, come before the preset, and both before every other option.
    """
    recipes: list[str] = []
    presets: list[str] = []
    out: list[str] = []
    rest = list(args)
    while rest:
        arg, value = rest.pop(0), rest[0] if rest else "--"
        name, equals, inline = arg.partition("=")
        if name in ("--config", PRESET) and (equals or rest):
            value = inline if equals else rest.pop(0)
            if name == "--config":
                recipes += ["--config", _recipe(value, accepted)]
            else:
                presets = ["--config", json.dumps({"sampling": _preset(value)})]
        else:
            out += [arg, "true"] if arg in switches and value.startswith("-") else [arg]
    return recipes + presets + out


def parse(kind: type[T], verb: str, args: Sequence[str], *, positional: Mapping[str, str] = MappingProxyType({})) -> T:
    """Options of `verb` as an instance of the dataclass `kind`.

    Args:
        kind: dataclass whose fields (nested dataclasses too) are the options.
        positional: fields that are given by position, in this order, with their help; the rest are --options.

    Raises:
        UserError: unknown option (the nearest valid one is named), ill-typed value, missing recipe.
        SystemExit: after --help.
    """
    accepted = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    parser = OptionParser(prog=f"reca-fast {verb}", description=VERBS[verb].capitalize() + ".", default_env=False)
    parser.add_argument("--config", action="config", help="YAML recipe: a file, or the name of a shipped one")
    for name, about in positional.items():
        parser.add_argument(name, type=str, help=about)
    parser.add_class_arguments(kind, as_group=False, skip=set(positional))
    if "sampling" in accepted:
        parser.add_argument(PRESET, type=Literal[tuple(PRESETS)], help=PRESET_HELP)
    actions = parser._option_string_actions.items()
    switches = {option for option, action in actions if getattr(action, "_typehint", None) is bool}
    given = parser.parse_args(_expand(args, switches, accepted))
    for group in sorted({option.rpartition(".")[0] for option in parser.options()} - {""}):
        if not isinstance(given[group], Namespace):
            raise UserError(f"Option {group!r} is a group of options (name: value), not {given[group]!r}.")
    given.pop(PRESET.removeprefix("--"), None)  # its settings have taken effect
    values = vars(parser.instantiate(given))
    values.pop("config", None)
    return kind(**values)
