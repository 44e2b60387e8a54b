"""The command `reca-fast VERB [options]`. A verb is a module here with a `main`, imported when it is asked for."""

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from reca_fast import __version__
from reca_fast.errors import UserError, did_you_mean

VERBS = {
    "plan": "tell what a run will take in memory, time and money, and find levers that make it fit",
    "train": "post-train a checkpoint on a folder, tar shards, parquet files or a dataset of pictures",
    "cache": "encode all pictures once, for training that loads no encoder and decodes nothing",
    "reconstruct": "draw pictures again from what the model sees of them, beside the originals",
    "generate": "draw pictures from prompts, change given ones, or draw a whole benchmark",
    "evaluate": "score pictures beside their references and prompts, or a model in the toy world",
    "compare": "show what two models draw of the same prompts, side by side on one page",
    "study": "run the paper's ablations and the quality regression on the toy world",
    "verify": "replay a recorded parity case, or check a checkpoint folder",
    "recipes": "list, show or copy the recipes that ship with the package",
    "export": "turn a training checkpoint into a folder that the authors' code reads",
    "doctor": "show what this machine can run, and why not the rest",
}


def usage() -> str:
    """The text of `reca-fast --help`."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())
    return (
        "usage: reca-fast VERB [--config RECIPE] [--option VALUE ...]\n\n"
        "RECA post-training of unified multimodal models, fast and cheap.\n\n"
        f"verbs:\n{verbs}\n\n"
        "`reca-fast VERB --help` lists a verb's options. RECIPE is a YAML file or the name of a shipped recipe,\n"
        "which `reca-fast recipes` lists; every option on the command line overrides it."
    )


def set_up_allocator() -> None:
    """Let torch take GPU memory in segments that can grow: packs differ in length, and segments of fixed sizes would
    leave gaps of gigabytes between them.

    torch reads the environment variable when it is imported, so nothing is set afterwards. A value that the user has
    set stays.
    """
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the old name
    if "torch" not in sys.modules and not any(name in os.environ for name in names):
        os.environ[names[0]] = "expandable_segments:True"


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line `argv` (by default the process's own) asks for. Returns the exit code.

    0 is success. 2 is a user's mistake, told in one sentence on stderr; 1 is a bug, with a sentence on how to report
    it, or a disagreement that `verify` found; 130 is Ctrl-C; 141 is a reader of the output that went away, as in
    `reca-fast train --help | head -1`.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us: a file would take its place
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open as long as the process)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names and prompts may hold what it has no bytes for
    try:
        try:
            return _dispatch(args)
        finally:
            sys.stdout.flush()  # at the end of the interpreter a full disk would be a traceback
    except UserError as error:
        with suppress(OSError):  # where nobody can be told, the exit code still tells
            print(f"reca-fast: {one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reca-fast: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_output()
        return 141
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno == errno.ENOSPC:
            _drop_output()
        from reca_fast.cli.failures import report

        return report(error, args)


def one_line(text: str) -> str:
    """The text on one line of printable characters, whatever the names of files in it hold."""
    return "".join(c if c.isprintable() else " " if c.isspace() else f"\\x{ord(c):02x}" for c in text)


def _drop_output() -> None:
    """Send what is still buffered for stdout nowhere: the interpreter would try to write it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(args: list[str]) -> int:
    """Let the verb that was asked for do its work; its exit code."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if args[0] == "--version":
        print(f"reca-fast {__version__}")
        return 0
    verb, options = args[0], args[1:]
    set_up_allocator()
    if verb not in VERBS:
        raise UserError(f"Unknown verb {verb!r}.{did_you_mean(verb, VERBS)} `reca-fast --help` lists them.")
    code: int = importlib.import_module(f"reca_fast.cli.{verb}").main(options)
    return code
