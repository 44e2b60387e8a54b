"""How a setting is declared: what its change means for a run that is resumed, and the types that several groups share.

`fixed`, `free`, `rounding` and `neutral` below say what a change means. The type of a setting says which values it may
have (`schema.py` has ranges of numbers).
"""

from collections.abc import Iterator
from dataclasses import field, fields, is_dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from reca_fast.schema import Range

T = TypeVar("T")

HOME = "~ is the home folder"
Place = Annotated[str, HOME]
"""A path, glob or hub id."""
Pixels = Annotated[int, Range(1, 2**16)]
Seed = Annotated[int, Range(0, 2**62)]
Decay = Annotated[float, Range(at_least=0, below=1)]
"""Share of an average that is kept in every step."""
Resume = Literal["fixed", "free", "rounding", "neutral"]


def fixed(default: T, by: Literal["value", "content"] = "value") -> T:
    """A setting that a run keeps for its life: resuming with another one is refused by name.

    Args:
        by: value compares what was written; content compares what the path leads to, so a folder may move.
    """
    return field(default=default, metadata={"resume": "fixed", "by": by})


def free(default: T) -> T:
    """A setting that may change on resume: from there on it takes effect as it does in a fresh run."""
    return field(default=default, metadata={"resume": "free"})


def rounding(default: T) -> T:
    """A setting that chooses how the same numbers are computed: a change on resume shows in their last bits only."""
    return field(default=default, metadata={"resume": "rounding"})


def neutral(default: T) -> T:
    """A setting without effect on the numbers: a run that is resumed with another one goes on bit for bit."""
    return field(default=default, metadata={"resume": "neutral"})


class Setting(NamedTuple):
    """One setting of a run."""

    name: str  # dotted, as on the command line
    resume: Resume
    by: str  # what of a fixed one is compared: its value, or the content that it leads to


def settings(config: Any, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a configuration and of those nested in it.

    Raises:
        TypeError: a setting does not say what its change means on resume.
    """
    for entry in fields(config):
        name, value = f"{prefix}{entry.name}", getattr(config, entry.name)
        if is_dataclass(value):
            yield from settings(value, f"{name}.")
        elif "resume" not in entry.metadata:
            raise TypeError(f"{name} is declared neither fixed, free, rounding nor neutral")
        else:
            yield Setting(name, entry.metadata["resume"], entry.metadata.get("by", "value"))
