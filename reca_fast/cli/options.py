"""Typed options of a verb: a dataclass, filled from a YAML recipe and then from the command line (jsonargparse)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings

from reca_fast.errors import UserError, did_you_mean

RECIPES = Path(__file__).parent.parent / "recipes"
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


def _recipe(value: str) -> str:
    """A shipped recipe's name -> its path; a path stays what it is."""
    shipped = {path.stem: path for path in RECIPES.glob("*.yaml")}
    if Path(value).exists() or value not in shipped:
        if not Path(value).exists():
            raise UserError(f"There is no recipe {value!r}: neither a file nor one of {', '.join(sorted(shipped))}.")
        return value
    return str(shipped[value])


def _expand(args: Sequence[str], switches: set[str]) -> list[str]:
    """Recipe names become paths, and a bare switch (`--profile`) means true."""
    out: list[str] = []
    for position, arg in enumerate(args):
        following = args[position + 1] if position + 1 < len(args) else "--"
        if out and out[-1] == "--config":
            out.append(_recipe(arg))
        elif arg.startswith("--config="):
            out.append(f"--config={_recipe(arg.removeprefix('--config='))}")
        else:
            out.append(arg)
            if arg in switches and following.startswith("-"):
                out.append("true")
    return out


def parse(kind: type[T], verb: str, args: Sequence[str], *, positional: Sequence[str] = (), about: str = "") -> T:
    """Options of `verb` as an instance of the dataclass `kind`.

    Args:
        kind: dataclass whose fields (nested dataclasses too) are the options.
        positional: fields that are given by position, in this order; the rest are --options.
        about: first line of the help.

    Raises:
        UserError: unknown option (the nearest valid one is named), ill-typed value, missing recipe.
        SystemExit: after --help.
    """
    parser = OptionParser(prog=f"reca-fast {verb}", description=about, default_env=False)
    parser.add_argument("--config", action="config", help="YAML recipe: a file, or the name of a shipped one")
    for name in positional:
        parser.add_argument(name, type=str, help=_field_help(kind, name))
    parser.add_class_arguments(kind, as_group=False, skip=set(positional))
    switches = {
        option
        for option, action in parser._option_string_actions.items()
        if getattr(action, "_typehint", None) is bool
    }
    values = vars(parser.instantiate(parser.parse_args(_expand(args, switches))))
    values.pop("config", None)
    return kind(**values)


def _field_help(kind: type, name: str) -> str:
    from jsonargparse import _parameter_resolvers

    return next((p.doc or "" for p in _parameter_resolvers.get_signature_parameters(kind) if p.name == name), "")
