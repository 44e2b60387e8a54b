"""Typed options of a verb: a dataclass, filled from a YAML recipe and then from the command line (jsonargparse)."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import MappingProxyType, NoneType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_type_hints

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from reca_fast.cli import VERBS
from reca_fast.cli.habits import suggestion
from reca_fast.cli.recipe_reader import Layer, as_argument, check_names, parse_yaml, read_recipe
from reca_fast.config import HOME, PRESETS, RunConfig
from reca_fast.config.recipes import shipped
from reca_fast.errors import UserError
from reca_fast.schema import check_ranges, shown

PRESET = "sampling.preset"
PRESET_HELP = (
    "Settings of the authors' scripts under one name, which the options below override: geneval, dpg, wise, app, "
    "notebook (RECA's text to image), notebook-reconstruct (RECA's picture to picture), edit, "
    "gedit, imgedit (pictures that are edited)"
)
RENAMED: dict[str, str] = {
    "data.vit_resize": "data.condition_resize",
    "data.vae_resize": "data.target_resize",
    "model.compile": "memory.compile",
    "model.recompute": "memory.recompute",
}
"""Options and groups of options that had another name in an earlier version: old dotted name -> new dotted name.

The old name is refused with a sentence that tells the new one, on the command line and in a recipe.
"""
T = TypeVar("T")

set_parsing_settings(docstring_parse_attribute_docstrings=True)

KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
"""Types as messages call them."""


class HelpFormatter(DefaultHelpFormatter):
    """Help that says in words what a value may be, where jsonargparse would show its Python type."""

    def _expand_help(self, action: Any) -> str:
        shown = (
            super()._expand_help(action).replace("Path to a configuration file.", "All of these: {name: value, ...}")
        )
        shown = re.sub(r"Annotated\[(\w+), '?(.+?)'?\](?=[],)])", r"\1, \2", shown)
        shown = re.sub(r"type: (Literal\[[^]]*\]|bool), ", "", shown)  # the choices stand beside the option's name
        shown = re.sub(r"type: (\w+)(?=[,)])", lambda match: KINDS.get(match[1], match[0]), shown)
        return shown.replace("default: )", "default: empty)")


class OptionParser(ArgumentParser):
    """A parser that raises UserError for what it does not understand, where jsonargparse prints its usage and exits."""

    def options(self) -> list[str]:
        """Every option by its dotted name."""
        return [name[2:] for name in self._option_string_actions if name.startswith("--")]

    def unknown(self, name: str) -> UserError:
        """The refusal of a name that is no option; it tells the new name of a renamed one, or else the nearest."""
        if (new := new_name(name)) is not None:
            return UserError(f"The option {name!r} is now called {new!r}; write the new name.")
        return UserError(f"Unknown option {name!r}.{suggestion(name, self.options())}")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(str(message).split())
        if unknown := re.search(r"unrecognized arguments: (-*)([^\s=]+)", text, re.IGNORECASE):
            if unknown[1]:
                raise self.unknown(unknown[2])
            is_recipe = unknown[2].endswith((".yaml", ".yml")) or unknown[2] in shipped()
            hint = f" Did you mean --config {unknown[2]}?" if is_recipe else ""
            raise UserError(f"{unknown[2]!r} stands where an option (--name value) is expected.{hint}")
        text = re.sub(r"<class '(\w+)'>|typing\.", r"\1", text.removeprefix("Parser key ")).rstrip(".")
        text = re.sub(r"Expected a Literal\[([^\]]*)\]", r"Expected one of \1", text)
        text = re.sub(r": 'utf-8' codec can't encode.*", " holds bytes that are no UTF-8; name it by a link", text)
        for kind, words in KINDS.items():
            text = re.sub(rf"Expected an? {kind}\b", f"Expected {words}", text)
        # Of an option that may be unset, only what it may be when it is set is of interest.
        text = re.sub(r"Does not validate against any of the Union .*? Errors: - ", "", text)
        text = re.sub(r" - Expected a NoneType| Given value type: \w+(?= Given value:)", "", text)
        raise UserError(f"{text}.")


def new_name(name: str) -> str | None:
    """What an option of an earlier version is called today, or None when it was never renamed.

    A renamed group renames every option in it: with {"data.a": "data.b"} in `RENAMED`, data.a.x is now data.b.x.
    """
    for old, new in RENAMED.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return None


def option_names(kind: Any, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """(dotted name, whether it may be null) of every option in a dataclass."""
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from option_names(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, NoneType in get_args(hint)


def _expand(
    parser: OptionParser, args: Sequence[str], options: Mapping[str, bool], switches: set[str], stage: Layer | None
) -> list[str]:
    """The command line with everything in it that jsonargparse does not know written out.

    A recipe, a preset and a group of options given as one value (`--optim '{lr: 1e-4}'`) become the settings that they
    stand for; a switch without a value (`--profile`) becomes true. Where settings meet, the later one wins, so recipes
    are put first, in their order, then the stage, then the preset, then all other options. A training recipe serves
    every verb: the sections that only `train` knows are left out for the others.

    Args:
        parser: of the verb.
        args: the command line after the verb.
        options: option by dotted name -> whether it may be null.
        switches: options that are true or false, as they are typed (`--profile`).
        stage: what a stage of a recipe overrides.

    Raises:
        UserError: a recipe that is missing, no YAML, or sets what is no option.
    """
    groups = {name.rpartition(".")[0] for name in options if "." in name}
    groups |= {group.partition(".")[0] for group in groups}
    skipped = {field.name for field in fields(RunConfig)} - {option.partition(".")[0] for option in options}

    def as_config(content: Any, where: str) -> list[str]:
        sampling = content.get("sampling") if isinstance(content, dict) and "sampling" in groups else None
        if isinstance(sampling, dict) and "preset" in sampling:
            content = content | {"sampling": _preset(sampling.pop("preset")) | sampling}
        return ["--config", as_argument(check_names(content, where, options, skipped, parser.unknown))]

    recipes: list[str] = []
    presets: list[str] = []
    out: list[str] = []
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        name, equals, value = arg.removeprefix("--").partition("=")
        if not arg.startswith("--") or name not in {"config", PRESET, *groups} or not (equals or rest):
            bare = arg in switches and (not rest or rest[0].startswith("-"))
            out += [arg, "true"] if bare else [arg]
            continue
        value = value if equals else rest.pop(0)
        if name == "config":
            recipes += [part for layer in read_recipe(value).layers for part in as_config(*layer)]
        elif name == PRESET:
            presets = as_config({"sampling": {"preset": value}}, arg)
        else:
            content = parse_yaml(value, f"--{name}")
            for part in reversed(name.split(".")):
                content = {part: content}
            out += as_config(content, f"--{name}")
    return recipes + (as_config(*stage) if stage else []) + presets + out


def _preset(name: Any) -> dict[str, Any]:
    """The sampling settings that a preset stands for. Raises UserError for a name of none."""
    if name not in list(PRESETS):  # a recipe may hold a list there, which has no place in a dict
        raise UserError(f"{PRESET}: there is no preset {shown(name)}, only {', '.join(PRESETS)}.")
    return dict(PRESETS[name])


def _expand_home(config: Any, prefix: str = "") -> None:
    """Replace a leading ~ in every path of `config` by the home folder, as a shell does on the command line but not in
    a recipe.

    Raises:
        UserError: a home folder of nobody; the character NUL, which no path can hold.
    """
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if is_dataclass(value):
            _expand_home(value, f"{prefix}{name}.")
        elif HOME in getattr(hint, "__metadata__", ()):
            if "\0" in value:
                raise UserError(f"{prefix}{name}={shown(value)}: no path holds the character NUL; leave it out.")
            path = os.path.expanduser(value)
            if path.startswith("~"):
                user = path.partition("/")[0]
                raise UserError(
                    f"{prefix}{name}={path}: there is no home folder {user}; write ./{user} if it is a name."
                )
            setattr(config, name, path)


def parse_stages(kind: type[T], verb: str, args: Sequence[str]) -> list[tuple[str, T]]:
    """(name of the stage, options) for every stage of the recipe that is given; one without a name for a recipe that
    has none. What the command line says holds for every stage.

    Raises:
        UserError: like `parse`.
    """
    stages: list[tuple[str, Layer]] = []
    for i, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name == "--config" and (equals or i + 1 < len(args)):
            stages = read_recipe(value if equals else args[i + 1]).stages or stages
    if not stages:
        return [("", parse(kind, verb, args))]
    names = [f"{number}-{name}" for number, (name, _) in enumerate(stages, start=1)]
    return [(name, parse(kind, verb, args, stage=layer)) for name, (_, layer) in zip(names, stages, strict=True)]


def parse(
    kind: type[T],
    verb: str,
    args: Sequence[str],
    *,
    positional: Mapping[str, str] = MappingProxyType({}),
    stage: Layer | None = None,
) -> T:
    """Options of `verb` as an instance of the dataclass `kind`.

    Args:
        kind: dataclass whose fields (nested dataclasses too) are the options.
        positional: fields that are given by position, in this order, with their help; the rest are --options. Fields
            with a default may be left out.
        stage: what one stage of the recipe overrides; None for the settings that its stages have in common.

    Raises:
        UserError: unknown option (the nearest valid one is named), missing recipe, value of another type or range.
        SystemExit: after --help.
    """
    parser = OptionParser(
        prog=f"reca-fast {verb}",
        description=VERBS[verb].capitalize() + ".",
        default_env=False,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--config", action="config", help="YAML recipe: a file, or the name of a shipped one")
    defaults = {entry.name: entry.default for entry in fields(kind)}  # type: ignore[arg-type]
    for name, about in positional.items():
        optional: dict[str, Any] = {} if defaults[name] is MISSING else {"nargs": "?", "default": defaults[name]}
        parser.add_argument(name, type=str, help=about, **optional)
    parser.add_class_arguments(kind, as_group=False, skip=set(positional))
    options = {name: empty for name, empty in option_names(kind) if name not in positional}
    if any(name.startswith("sampling.") for name in options):
        parser.add_argument(f"--{PRESET}", type=Literal[tuple(PRESETS)], help=PRESET_HELP)
    actions = parser._option_string_actions.items()
    switches = {option for option, action in actions if getattr(action, "_typehint", None) is bool}
    given = parser.parse_args(_expand(parser, args, options, switches, stage))
    given.pop(PRESET, None)  # its settings have taken effect
    values = vars(parser.instantiate(given))
    values.pop("config", None)
    config = kind(**values)
    _expand_home(config)
    check_ranges(config)
    return config
