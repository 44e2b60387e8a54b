"""Values from outside, read through types: JSON of bounded size and depth, and dataclasses whose fields state ranges.

The numbers that a field may have stand in its type, whether the value comes from a file or from the command line:
`steps: PositiveInt`, or `workers: Annotated[int, Range(1, 1024)]` for a closed interval of its own. Rules between the
fields of what a file holds stand in the dataclass's `__post_init__`, which raises ValueError; those between settings of
a run stand in `config/rules.py`.
"""

import json
import math
import stat
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from reca_fast.errors import UserError, reading

T = TypeVar("T")
MAX_BYTES = 16 * 2**20
MAX_DEPTH = 50
"""Lists and objects inside one another."""
SHOWN = 60
"""Characters of a wrong value that a sentence repeats."""


@dataclass(frozen=True, repr=False)
class Range:
    """Which finite numbers a field may have: `Range(1, 1024)` is a closed interval, `Range(above=0)` leaves 0 out.

    On a field that holds several numbers it speaks of each.
    """

    at_least: float = -math.inf
    at_most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def holds(self, value: float) -> bool:
        """NaN and infinities are in no range."""
        inside = self.at_least <= value <= self.at_most and self.above <= value <= self.below
        return inside and math.isfinite(value) and value not in (self.above, self.below)

    def __str__(self) -> str:
        bounds = [f"{name.replace('_', ' ')} {bound:,}" for name, bound in vars(self).items() if math.isfinite(bound)]
        return " and ".join(bounds) or "finite"

    def __repr__(self) -> str:
        """What `--help` shows of it."""
        return str(self)


PositiveInt = Annotated[int, Range(1, 10**9)]
NonNegativeInt = Annotated[int, Range(0, 10**9)]
PositiveFloat = Annotated[float, Range(above=0, at_most=1e9)]
NonNegativeFloat = Annotated[float, Range(0, 1e9)]
Fraction = Annotated[float, Range(0, 1)]
Probability = Fraction


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: the file is missing, unreadable, no regular file, larger than `max_bytes`, no UTF-8, no JSON, nests
            deeper than MAX_DEPTH or names one key twice.
    """
    with reading(path):
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is no file of JSON.")  # a pipe would wait for ever
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UserError(f"{path} is larger than {max_bytes:,} bytes; it cannot be the right file.")
    return parse_json(data, str(path))


def parse_json(data: bytes | str, where: str) -> Any:
    """The value of a JSON text. Raises UserError like `read_json`, naming `where`."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        value = None
        deep = True
    except ValueError as error:
        raise UserError(f"{where} cannot be read as JSON: {' '.join(str(error).split())}.") from None
    else:
        deep = _depth(value) > MAX_DEPTH
    if not deep and "\\ud" in text.lower():  # such an escape stands for half a character
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError(f"{where} holds half of a character (\\ud800 to \\udfff); write the whole one.") from None
    if deep:
        raise UserError(f"{where} nests deeper than {MAX_DEPTH} levels; it cannot be the right file.")
    return value


def from_dict(kind: type[T], values: Any, where: str, *, strict: bool = False, remedy: str = "") -> T:
    """An instance of the dataclass `kind` from a JSON object; `where` names the object in messages.

    Understands bool, int, float, str, None, Any, Literal, unions of these, list[X], tuple[X, Y], tuple[X, ...],
    dict[str, X], dataclasses, and a `Range` on numbers in any of them. A whole number is a float; true is no number.

    Args:
        strict: refuse names that `kind` does not have; otherwise they are left out.
        remedy: what to do about a missing value.

    Raises:
        UserError: not an object; a value missing, unknown, of another type, out of range, or against a rule of `kind`.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where} holds no settings (name: value).")
    hints, known = _hints(kind), {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    needed = [name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in values]:
        raise UserError(f"{where} lacks {', '.join(missing)}{remedy and f'; {remedy}'}.")
    if strict and (strange := [name for name in values if name not in known]):
        raise UserError(f"{where} has the unknown key {strange[0]!r:.{SHOWN}}.")
    chosen = {name: _convert(hints[name], values[name], where, name) for name in known if name in values}
    try:
        return kind(**chosen)
    except ValueError as error:
        raise UserError(f"{where}: {error}.") from None


def check_ranges(config: Any, prefix: str = "") -> None:
    """Refuse a number of `config` (a dataclass, nested ones included) that is out of its field's range.

    Raises:
        UserError: names the option by its dotted name.
    """
    for name, hint in _hints(type(config)).items():
        value, option = getattr(config, name), f"{prefix}{name}"
        if is_dataclass(value):
            check_ranges(value, f"{option}.")
            continue
        numbers = value if isinstance(value, list | tuple) else [value]
        wanted = _ranges(hint)
        for number in numbers:
            if isinstance(number, int | float) and not isinstance(number, bool):
                for bounds in wanted or [Range()]:
                    if not bounds.holds(number):
                        raise UserError(f"{option}={shown(value)}: it must be {bounds}.")


def shown(value: Any) -> str:
    """A value for a message, cut when it is long."""
    if isinstance(value, int) and abs(value) >= 10**SHOWN:  # str() of thousands of digits is an error
        return f"a number of more than {SHOWN} digits"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _ranges(hint: Any) -> list[Range]:
    """Those in a type, at any depth."""
    own = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Range)]
    return own + [found for part in get_args(hint) for found in _ranges(part) if found not in own]


def _convert(hint: Any, value: Any, where: str, name: str) -> Any:
    """`value` as the type `hint` wants it; UserError otherwise."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = _convert(parts[0], value, where, name)
        for bounds in parts[1:]:
            if isinstance(bounds, Range) and not bounds.holds(value):
                raise UserError(f"{where}: {name} is {shown(value)}; it must be {bounds}.")
        return value
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        for part in parts:
            if isinstance(value, _plain(part)) and not (isinstance(value, bool) and _plain(part) is not bool):
                return _convert(part, value, where, name)
    elif origin is Literal:
        if value in parts and type(value) in map(type, parts):
            return value
    elif is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, f"{name} of {where}")
    elif origin in (list, tuple) and isinstance(value, list):
        kinds = [parts[0]] * len(value) if origin is list or parts[1:] == (...,) else list(parts)
        if len(kinds) == len(value):
            return origin(_convert(kind, entry, where, name) for kind, entry in zip(kinds, value, strict=True))
    elif origin is dict and isinstance(value, dict):
        return {key: _convert(parts[1], entry, where, f"{name}.{key:.{SHOWN}}") for key, entry in value.items()}
    elif hint is float and type(value) in (int, float):
        if Range(-1.7e308, 1.7e308).holds(value):
            return float(value)
        raise UserError(f"{where}: {name} is {shown(value)}; it must be finite.")
    elif hint in (NoneType, None):
        if value is None:
            return None
    elif hint in (bool, int, str) and type(value) is hint:
        return value
    raise UserError(f"{where}: {name} is {shown(value)}, not {_in_words(hint)}.")


def _plain(hint: Any) -> Any:
    """The class that values of a part of a union have in JSON."""
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    kind = get_origin(hint) or hint
    if kind is tuple:
        return list
    if kind is float:
        return (int, float)
    if kind is Literal:
        return tuple(map(type, get_args(hint)))
    return dict if is_dataclass(kind) else kind


def _in_words(hint: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}
    if get_origin(hint) is Annotated:
        return _in_words(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_in_words, get_args(hint)))
    if get_origin(hint) is dict:
        return "an object of names and values"
    if get_origin(hint) in (list, tuple):
        inner = get_args(hint)
        count = "" if get_origin(hint) is list or inner[1:] == (...,) else f"{len(inner)} "
        return f"a list of {count}values, each {_in_words(inner[0])}"
    return words.get(hint, "settings (name: value)")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it holds the name {twice!r:.{SHOWN}} twice")
    return out


def _depth(value: Any) -> int:
    """How far lists and objects nest, counted without recursion and not much beyond MAX_DEPTH."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        depth += 1
        level = [item for item in inner if isinstance(item, list | dict)]
    return depth
