"""Recipes: YAML of options, checked against the verb's own before anything else sees it.

Nothing in a recipe can name code, a file to read settings from or more than it spells out: only plain values are read,
no aliases, and every name must be one of an option. Two names are none: `base`, a shipped recipe that this one changes,
and `stages`, a list of changes to be trained one after another.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from reca_fast.config.recipes import shipped
from reca_fast.errors import UserError, did_you_mean, reading
from reca_fast.schema import MAX_DEPTH, shown

MAX_BYTES = 2**16
"""A recipe has some 2 KB; reading YAML takes seconds a megabyte."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values: no octal, no dates, and 1e-4 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        times = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [name for name, count in times.items() if count > 1]:
            raise yaml.constructor.ConstructorError(problem=f"it sets {shown(twice[0])} twice")
        return super().construct_mapping(node, deep)


def _number(kind: type) -> Any:
    return lambda loader, node: kind(loader.construct_scalar(node).replace("_", "").replace(".inf", "inf"))


_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {
    f"tag:yaml.org,2002:{name}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{name}"]
    for name in ("null", "bool", "str", "seq", "map")
} | {None: yaml.SafeLoader.yaml_constructors[None]}
for _name, _pattern, _first in (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+0123456789."),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first]
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _number(int))
_Loader.add_constructor("tag:yaml.org,2002:float", _number(float))


class Layer(NamedTuple):
    """Options of one recipe, or of one stage of it."""

    content: Any
    where: str  # how messages call it


class Recipe(NamedTuple):
    """A recipe with what it is built on."""

    layers: list[Layer]  # each overrides those before it
    stages: list[tuple[str, Layer]]  # (name, what the stage overrides); [] for a run of one stage


STAGE = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def read_recipe(value: str) -> Recipe:
    """The recipe that is given by path or by the name of a shipped one.

    Raises:
        UserError: there is none, it is no YAML, its base is no shipped recipe, or its stages have no names.
    """
    path = Path(os.path.expanduser(value))
    if not path.exists():
        if value not in shipped():
            raise UserError(f"There is no recipe {value!r}: neither a file nor {choice_of(value)}")
        path = shipped()[value]
    content, where = _read(path)
    if not isinstance(content, dict):
        return Recipe([Layer({} if content is None else content, where)], [])
    own = {name: setting for name, setting in content.items() if name not in ("base", "stages")}
    base = content.get("base")
    if base is None:
        under = Recipe([], [])
    elif isinstance(base, str) and base in shipped():
        under = read_recipe(str(shipped()[base]))
    else:
        raise UserError(f"{where} builds on base {shown(base)}, which is not {choice_of(str(base))}")
    stages = _stages(content["stages"], where) if "stages" in content else under.stages
    return Recipe([*under.layers, Layer(own, where)], stages)


def choice_of(name: str) -> str:
    """The end of a sentence on a recipe that there is not: which there are, and which might be meant."""
    near = sorted(each for each in shipped() if "/" not in each)
    return f"one of {', '.join(near)} and those of `reca-fast recipes`.{did_you_mean(name, shipped())}"


def _stages(content: Any, where: str) -> list[tuple[str, Layer]]:
    if not isinstance(content, list) or not content or not all(isinstance(stage, dict) for stage in content):
        raise UserError(f"{where}: stages is a list of options, each with a name (- name: sft), not {shown(content)}.")
    for stage in content:
        if not isinstance(stage.get("name"), str) or not STAGE.fullmatch(stage["name"]):
            name = shown(stage.get("name"))
            raise UserError(f"{where}: a stage's name is made of small letters, digits and hyphens, not {name}.")
    names = [stage["name"] for stage in content]
    return [
        (name, Layer({key: setting for key, setting in stage.items() if key != "name"}, f"{where}, stage {name}"))
        for name, stage in zip(names, content, strict=True)
    ]


def _read(path: Path) -> tuple[Any, str]:
    """(content, how messages call it) of a recipe's file."""
    with reading(path), path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(f"The recipe {path} is larger than {MAX_BYTES:,} bytes; it cannot be the right file.")
    return parse_yaml(data, f"The recipe {path}"), f"The recipe {path}"


def parse_yaml(data: bytes | str, where: str) -> Any:
    """The plain value that a YAML text spells.

    Raises:
        UserError: no YAML, nested deeper than MAX_DEPTH, an alias, a tag, a name that is set twice.
    """
    try:
        depth = 0
        for event in yaml.parse(data, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise UserError(f"{where} nests deeper than {MAX_DEPTH} levels; options nest three.")
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{where} refers to another place of itself (*{event.anchor}); write the value out.")
        return yaml.load(data, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())}.") from None


def check_names(
    content: Any, where: str, options: Mapping[str, bool], skipped: Collection[str], unknown: Any, prefix: str = ""
) -> dict[str, Any]:
    """The content without the sections that only another verb knows.

    Args:
        options: option by dotted name -> whether it may be left empty (null).
        skipped: names that are left out.
        unknown: makes the UserError for a name that is no option.

    Raises:
        UserError: names and values that are none, an unknown name, an option without a value, a value for a group.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where} holds no options (name: value).")
    kept = {}
    for key, value in content.items():
        if not isinstance(key, str):
            raise UserError(f"{where} holds {shown(key)} in the place of an option's name.")
        name = prefix + key
        if any(option.startswith(f"{name}.") for option in options):
            if not isinstance(value, dict):
                raise UserError(f"Option {name!r} is a group of options (name: value), not {shown(value)}.")
            kept[key] = check_names(value, where, options, (), unknown, f"{name}.")
        elif name not in options:
            if name.partition(".")[0] not in skipped:
                raise unknown(name)
        elif value is None and not options[name]:
            hint = "; a lone ~ means none, write ~/ for your home folder" if name.endswith(("path", "out")) else ""
            raise UserError(f"{where} gives option {name!r} no value; write one, or remove the line{hint}.")
        else:
            kept[key] = value
    return kept


def as_argument(content: Mapping[str, Any]) -> str:
    """The content as text that the option parser reads back unchanged."""
    return json.dumps(content, ensure_ascii=False)
