"""The exception for whatever a user can mend. The command line prints it as one sentence, without a traceback."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Bad input or an impossible request. The message says what is wrong and what to do about it."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """' Did you mean X?', where X is the entry of `valid` most like `name`; an empty string when none is like it."""
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


@contextmanager
def reading(path: Path, *, missing: str = "check that the folder is the right one and whole") -> Iterator[None]:
    """A context in which the system's refusal to read `path` becomes a UserError.

    Args:
        missing: what the message advises when there is no such file.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {missing}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context in which the system's refusal to write `path` becomes a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None
