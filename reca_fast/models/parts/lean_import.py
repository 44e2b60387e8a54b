"""Importing from transformers and diffusers without the quantization libraries that they would load as well."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = ("torchao", "bitsandbytes")
"""What transformers' and diffusers' model classes import wherever it is installed, though only models in its formats
need it: seconds, and warnings about CUDA libraries.
"""


@contextmanager
def lean_import() -> Iterator[None]:
    """A context in which UNUSED look as if they were not installed, unless they were imported before."""
    hidden = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: Python's own mark of a barred import
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
