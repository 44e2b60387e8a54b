"""Who imports whom, and that `kernels/` is never taken for the PyPI package of that name."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import reca_fast
import reca_fast.kernels
from tests.places import ROOT
from tests.source_tree import SOURCES, imports, module_name

FREE = {"config", "errors", "extras", "schema", "sample", "randomness", "mapped"}
"""Pages that every room but the kernels may read: settings, the user's mistakes, typed reading of what comes from
outside, the words that rooms exchange, files of tensors.
"""

MAY_IMPORT = {
    "kernels": set(),
    "config": {"schema", "errors"},
    "errors": set(),
    "extras": {"errors"},
    "schema": {"errors"},
    "sample": set(),
    "mapped": set(),
    "randomness": set(),
    "toy": FREE,
    "data": FREE | {"toy"},
    "objectives": FREE | {"kernels"},
    "optim": FREE,
    "memory": FREE | {"models"},
    "checkpoints": FREE,
    "models": FREE | {"kernels", "objectives", "data"},
    "hardware": {"errors"},
    "pages": set(),
    "verify": FREE | {"models"},
    "precompute": FREE | {"data", "models"},
    "evaluation": FREE | {"toy", "data", "models", "pages"},
    "train": FREE
    | {"kernels", "objectives", "data", "optim", "memory", "checkpoints", "models", "evaluation", "hardware"},
    "layouts": FREE | {"data", "memory", "models", "train"},
    "plan": FREE | {"kernels", "data", "optim", "memory", "models", "hardware", "train"},
    "proof": FREE
    | {"toy", "data", "memory", "checkpoints", "models", "evaluation", "pages", "train", "hardware", "verify"},
    "cli": FREE
    | {"kernels", "data", "checkpoints", "memory", "models", "evaluation", "hardware", "verify", "train", "plan"}
    | {"precompute", "layouts", "pages", "proof"},
    "demo": FREE | {"models", "train", "proof", "cli"},
    "__main__": {"cli"},
}
"""Room -> the rooms that it may import. One step on the way of the data never reads a later one."""


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_rooms_import_only_what_they_may(path: Path) -> None:
    mine = room(module_name(path))
    others = {room(name) for name in imports(path)} - {mine, "__version__"}
    assert others <= MAY_IMPORT.get(mine, set()), f"{module_name(path)} may not import {others - MAY_IMPORT[mine]}"


def test_the_table_has_no_cycle_and_no_stranger() -> None:
    rooms = {room(module_name(path)) for path in SOURCES} - {""}
    assert rooms == MAY_IMPORT.keys()
    seen: list[str] = []
    while left := MAY_IMPORT.keys() - seen:
        ready = [name for name in left if MAY_IMPORT[name] <= set(seen)]
        assert ready, f"a cycle among {left}"
        seen += ready


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_catch_all(path: Path) -> None:
    """An `except` that names nothing, or everything without raising again, hides our own mistakes.

    The command line's outermost one tells them.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno}"
            caught = {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)}
            raises_again = isinstance(node.body[-1], ast.Raise)
            reports = module_name(path) == "reca_fast.cli" and "report" in ast.unparse(node.body[-1])
            assert raises_again or reports or not caught & {"Exception", "BaseException"}, f"{path}:{node.lineno}"


@pytest.mark.slow
def test_every_module_imports() -> None:
    names = [module.name for module in pkgutil.walk_packages(reca_fast.__path__, "reca_fast.")]
    for name in names:
        if name != "reca_fast.__main__":
            importlib.import_module(name)
    wanted = {module_name(path) for path in SOURCES if "kernels" not in path.parts} - {"reca_fast"}
    assert wanted <= set(names)
    assert not any(name == "kernels.ops" or name.startswith("kernels.ops.") for name in sys.modules)


# The folder kernels/ and the PyPI package of that name


def test_the_checkout_holds_no_package_named_kernels() -> None:
    """Without an __init__.py, an installed package `kernels` wins over the folder, whatever is on sys.path."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert reca_fast.kernels.varlen_attention.__module__ == "reca_fast.kernels.attention.contract"


PROBE = """
import importlib.util, sys
import reca_fast.kernels
from transformers.utils import import_utils
spec = importlib.util.find_spec("kernels")
assert spec is None or spec.origin is None or "site-packages" in spec.origin, spec
installed = importlib.util.find_spec("kernels") is not None and spec.origin is not None
assert import_utils.is_kernels_available() == installed, "transformers took the folder for the package"
ours = [name for name, module in sys.modules.items()
        if name.split(".")[0] == "kernels" and sys.argv[1] in str(getattr(module, "__file__", ""))]
assert not ours, ours
"""


@pytest.mark.slow
def test_transformers_does_not_find_our_folder() -> None:
    """In a fresh interpreter in the checkout, which `python -c` puts first on sys.path."""
    subprocess.run([sys.executable, "-c", PROBE, str(ROOT)], cwd=ROOT, check=True)
