import importlib
import importlib.util
import sys

from reca_fast.models.parts import lean_import as lean


def test_what_is_not_used_looks_absent_inside_and_is_there_again_afterwards(monkeypatch) -> None:
    monkeypatch.setattr(lean, "UNUSED", ("colorsys",))  # any module that is installed will do
    monkeypatch.setattr(lean, "LIBRARIES", ())
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with lean.lean_import():
        assert importlib.util.find_spec("colorsys") is None
    assert importlib.util.find_spec("colorsys") is not None and "colorsys" not in sys.modules


def test_what_was_imported_before_stays(monkeypatch) -> None:
    monkeypatch.setattr(lean, "UNUSED", ("sys",))
    with lean.lean_import():
        assert sys.modules["sys"] is sys


def test_a_library_that_was_imported_elsewhere_finds_it_again(monkeypatch) -> None:
    monkeypatch.setattr(lean, "UNUSED", ("colorsys",))
    monkeypatch.setattr(lean, "LIBRARIES", ("sched", "wave"))
    monkeypatch.setattr(lean, "_came_without", set())
    for name in ("colorsys", "sched", "wave"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with lean.lean_import():
        importlib.import_module("sched")
    with lean.lean_import():  # it came without, and goes on without
        assert importlib.util.find_spec("colorsys") is None
    importlib.import_module("wave")
    with lean.lean_import():
        assert importlib.util.find_spec("colorsys") is not None
