"""Small valid arguments of every public function: `<operation>.py` holds EXAMPLES, a function's name -> arguments."""

from importlib import import_module
from typing import Any

from reca_fast.kernels import OPERATIONS


def examples() -> dict[str, dict[str, Any]]:
    """Those of all operations that are entered. An operation without a file here is an ImportError that names it."""
    found: dict[str, dict[str, Any]] = {}
    for name in OPERATIONS:
        found |= import_module(f"tests.kernels.examples.{name}").EXAMPLES
    return found
