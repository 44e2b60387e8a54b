"""What is said of an exception that is no UserError: no memory, a file the system refuses, a missing package, or a bug.

RECA_FAST_DEBUG=1 in the environment prints the traceback too.
"""

import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Sequence

from reca_fast import __version__

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
LESS_MEMORY = {
    "train": "lower --data.tokens_per_pack or --data.workers, or set --memory.recompute blocks",
    "generate": "lower --width and --height",
    "reconstruct": "lower --data.target_resize.max_size or --count",
}
"""Verb -> what to do so that it needs less."""
USER, BUG = 2, 1
"""Exit codes."""


def report(error: Exception, args: Sequence[str]) -> int:
    """Print one sentence on stderr that says what to do; returns the exit code."""
    trace = "".join(traceback.format_exception(error))
    if os.environ.get("RECA_FAST_DEBUG", "0") != "0":
        print(trace, file=sys.stderr)
    first = " ".join(str(error).split())[:200].rstrip(".")
    said = f"{type(error).__name__}: {first}" if first else type(error).__name__
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError | OSError) and _is_out_of_memory(first)):
        less = LESS_MEMORY.get(next(iter(args), ""), "use a machine with more of it")
        print(
            f"reca-fast: the memory does not suffice ({said}); {less}.",
            file=sys.stderr,
        )
        return USER
    if isinstance(error, OSError) and error.strerror:
        thing = f"{error.filename} cannot be used" if error.filename else "a file or the output cannot be written"
        print(f"reca-fast: {thing}: {error.strerror}.", file=sys.stderr)
        return USER
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("reca_fast"):
        print(f"reca-fast: the package {error.name} is needed, but not installed: `pip install` it.", file=sys.stderr)
        return USER
    print(
        f"reca-fast: this is a bug in reca-fast, not a mistake of yours ({said}); please report it with "
        f"{_written(trace, args)}.",
        file=sys.stderr,
    )
    return BUG


def _is_out_of_memory(message: str) -> bool:
    return any(phrase in message.lower() for phrase in OUT_OF_MEMORY)


def _written(trace: str, args: Sequence[str]) -> str:
    """Where the report lies that an issue should hold; the report itself when no file can be written."""
    text = f"reca-fast {__version__}, Python {platform.python_version()} on {platform.platform()}\n"
    text += f"command: reca-fast {' '.join(args)}\n\n{trace}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="reca-fast-bug-", suffix=".txt", delete=False) as file:
            file.write(text)
    except OSError:
        return f"this text:\n{text}"
    return f"the file {file.name}, which holds the traceback"
