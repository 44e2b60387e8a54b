import importlib.util
import sys

from reca_fast.models.parts import lean_import as lean


def test_what_is_not_used_looks_absent_inside_and_is_there_again_afterwards(monkeypatch) -> None:
    monkeypatch.setattr(lean, "UNUSED", ("colorsys",))  # any module that is installed will do
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with lean.lean_import():
        assert importlib.util.find_spec("colorsys") is None
    assert importlib.util.find_spec("colorsys") is not None and "colorsys" not in sys.modules


def test_what_was_imported_before_stays(monkeypatch) -> None:
    monkeypatch.setattr(lean, "UNUSED", ("sys",))
    with lean.lean_import():
        assert sys.modules["sys"] is sys
