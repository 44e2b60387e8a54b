"""The folders that public evaluators read: which prompts a benchmark has, and where each picture has to lie.

One file for each family of benchmarks reads its prompts and names its files; `draw.py` draws them, whatever the
benchmark; `manifest.py` remembers what they were drawn from. docs/evaluating.md has them side by side.
"""

import importlib
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from .layout import Layout

__all__ = ["LAYOUTS", "Category", "LayoutName", "layout_of"]

LayoutName = Literal[
    "geneval", "geneval2", "dpg", "dpg-reca", "wise", "wise-verified", "t2i-compbench", "imgedit", "gedit"
]
"""Benchmarks by the names that `generate --layout` takes."""

Category = Literal["color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex"]
"""Categories of T2I-CompBench."""

LAYOUTS: dict[str, str] = {
    "geneval": "geneval:GENEVAL",
    "geneval2": "geneval2:GENEVAL2",
    "dpg": "dpg:DPG",
    "dpg-reca": "dpg:DPG_RECA",
    "wise": "wise:WISE",
    "wise-verified": "wise:WISE_VERIFIED",
    "t2i-compbench": "compbench:COMPBENCH",
    "imgedit": "imgedit:IMGEDIT",
    "gedit": "gedit:GEDIT",
}
"""Name of a layout -> the module here and the `Layout` in it. Imported when it is asked for."""
assert tuple(LAYOUTS) == get_args(LayoutName)


def layout_of(name: str) -> "Layout":
    """The layout of a benchmark, by a name of LAYOUTS."""
    module, _, constant = LAYOUTS[name].partition(":")
    found: Layout = getattr(importlib.import_module(f"{__name__}.{module}"), constant)
    return found
