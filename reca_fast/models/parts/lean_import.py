"""Importing from transformers and diffusers without the quantization libraries that they would load as well."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = ("torchao", "bitsandbytes")
"""What transformers' and diffusers' model classes import wherever it is installed, though only models in its formats
need it: seconds, and warnings about CUDA libraries.
"""


LIBRARIES = ("transformers", "diffusers")
_came_without: set[str] = set()
"""Those of LIBRARIES that were imported in here. They note what is installed when they are imported, so one that was
imported elsewhere, by a user's own code, has to find UNUSED again.
"""


@contextmanager
def lean_import() -> Iterator[None]:
    """A context in which UNUSED look as if they were not installed, unless they, or a library that knows of them, were
    imported before.
    """
    before = {name for name in LIBRARIES if name in sys.modules}
    hidden = [name for name in UNUSED if name not in sys.modules] if before <= _came_without else []
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: Python's own mark of a barred import
    try:
        yield
    finally:
        if hidden:
            _came_without.update(name for name in LIBRARIES if name in sys.modules)
        for name in hidden:
            del sys.modules[name]
