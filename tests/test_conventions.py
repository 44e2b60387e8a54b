"""What every file keeps to, whoever writes it. CONTRIBUTING.md gives the reasons."""

import ast
import re
from pathlib import Path

import pytest

from tests.places import ROOT
from tests.source_tree import SOURCES, imports, module_name, tracked

MOST_LINES = 400
PYTHON = tracked("*.py")
IMPORTED: dict[Path, set[str]] = {}
"""Folder -> full names of what its files import."""
for source in SOURCES:
    IMPORTED.setdefault(source.parent, set()).update(imports(source))
MACHINES = re.compile(r"/(?:home|Users|root|work)/\w+")
"""How a path begins that is there on one machine alone."""


def inside(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_what_leaves_its_folder_has_a_docstring(path: Path) -> None:
    """Whoever uses a name of another room knows from its docstring what it gives, without opening the file."""
    module = module_name(path)
    used = set().union(*(names for folder, names in IMPORTED.items() if folder != path.parent))
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree), f"{inside(path)} does not say what it is for"
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    shown = {node.name for node in defined if f"{module}.{node.name}" in used and not ast.get_docstring(node)}
    assert not shown, f"{module}: {shown}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_module_only_passes_on_what_another_one_defines(path: Path) -> None:
    """What moves is imported from its new place; the old place is gone. A room's __init__ is its list of contents."""
    if path.name == "__init__.py":
        return
    passed_on = (ast.Import, ast.ImportFrom)
    body = [node for node in ast.parse(path.read_text()).body if not isinstance(node, ast.Expr)]
    assert not all(isinstance(node, passed_on) for node in body), f"{inside(path)} defines nothing"


def test_nothing_names_a_machine() -> None:
    """Results, pages and code read the same wherever they were written."""
    found = {}
    for path in tracked("*.py", "*.md", "*.json", "*.jsonl", "*.yaml", "*.toml", "*.txt", "Makefile"):
        if match := MACHINES.search(path.read_text()):
            found[inside(path)] = match[0]
    assert found == {}


def test_names_of_tests_are_sentences() -> None:
    """What fails is told by its name: at least three words, what holds of what."""
    found = {}
    for path in tracked("tests/*.py"):
        names = re.findall(r"^def test_(\w+)\(", path.read_text(), re.M)
        if short := [name for name in names if len(name.split("_")) < 3]:
            found[inside(path)] = short
    assert found == {}


def test_no_file_is_longer_than_a_few_screens() -> None:
    """One idea per file; a file that has grown past this holds two."""
    lengths = {inside(path): len(path.read_text().splitlines()) for path in PYTHON}
    assert {name: length for name, length in lengths.items() if length >= MOST_LINES} == {}


def rooms_of(paths: list[Path], top: str) -> set[str]:
    return {inside(path.parent).removeprefix(top).strip("/") for path in paths}


def test_rooms_of_tests_are_rooms_of_the_package() -> None:
    """Whoever changes reca_fast/data finds its tests in tests/data, and every room has some."""
    rooms = rooms_of([path for path in SOURCES if "kernels" not in path.relative_to(ROOT).parts], "reca_fast")
    tested = rooms_of([path for path in PYTHON if path.name.startswith("test_")], "tests")
    assert {room for room in tested if room.split("/")[0] not in ("kernels", "bench")} <= rooms
    untested = {room for room in rooms if not any(f"{test}/".startswith(f"{room}/") for test in tested)}
    assert untested <= {"demo", "models/bagel/cases"}  # tried by tests/bench and by tests/verify
