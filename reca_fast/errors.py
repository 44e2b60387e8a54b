"""The one exception that a user's mistake raises: the command line prints it as one sentence, never a traceback."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Bad input or an impossible request. The message names the thing and the way out."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """' Did you mean X?' for the entry of `valid` nearest to `name`, or an empty string when none is near."""
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


@contextmanager
def reading(path: Path, *, missing: str = "check that the folder is the right one and whole") -> Iterator[None]:
    """Turn the system's refusal to read `path` into a UserError; `missing` is what to do when nothing is there."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {missing}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write `path` into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None
