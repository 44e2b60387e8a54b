"""Recipes: YAML of options, checked against the verb's own before anything else sees it.

Nothing in a recipe can name code, another file or more than it spells out: only plain values are read, no aliases, and
every name must be one of an option.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from reca_fast.config.recipes import shipped
from reca_fast.errors import UserError, reading
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


def read_recipe(value: str) -> tuple[Any, str]:
    """(content, how messages call it) of a recipe that is given by path or by the name of a shipped one."""
    path = Path(os.path.expanduser(value))
    if not path.exists():
        if value not in shipped():
            raise UserError(f"There is no recipe {value!r}: neither a file nor one of {', '.join(sorted(shipped()))}.")
        path = shipped()[value]
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
