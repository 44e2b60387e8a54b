"""How files of VLMs call the tensors of `LanguageSide` and `Tower`.

The hub holds two layouts: the older one, in which the parts stand beside each other and which transformers still
writes, and that of transformers' classes, in which all but the head lies under `model.`. Which one a file has is told
by the key of its embedding table.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from reca_fast.errors import UserError
from reca_fast.models.files import NameTable, Weights

from .family import Family


class Layout(NamedTuple):
    """Prefixes of one layout."""

    text: str  # of the language model
    head: str  # of the head
    outer: str  # of tower and projector, before their names in the class


OLD: Mapping[str, tuple[Layout, ...]] = {
    "multi_modal_projector": (Layout("language_model.model.", "language_model.lm_head.", ""),),
    "visual.merger": (Layout("model.", "lm_head.", ""),),
}
"""Projector -> the older layout of its family."""
NEW = Layout("model.language_model.", "lm_head.", "model.")
STALE = (".rotary_emb.inv_freq", ".embeddings.position_ids")
"""Ends of keys that old files hold and nobody reads: tables that are computed."""


class Names(NamedTuple):
    """The tables of names of one file."""

    language: NameTable
    tower: NameTable


def names_of(weights: Weights, family: Family) -> Names:
    """The tables of names for a file of weights.

    Raises:
        UserError: it has no embedding table under any known name.
    """
    keys = weights.shapes.keys()
    layouts = (*OLD[family.PROJECTOR], NEW)
    found = [layout for layout in layouts if f"{layout.text}embed_tokens.weight" in keys]
    if not found:
        raise UserError(
            f"{weights.path} holds no {layouts[0].text}embed_tokens.weight; it is no file of a {family.CLASS}, as "
            "config.json beside it says."
        )
    return _tables(found[0], family, keys)


def _tables(layout: Layout, family: Family, keys: Collection[str]) -> Names:
    tower, projector = (f"{layout.outer}{name}." for name in (family.TOWER, family.PROJECTOR))
    inner = "vision_model." if any(key.startswith(f"{tower}vision_model.") for key in keys) else ""
    stale = frozenset(key for key in keys if key.endswith(STALE))
    language = NameTable(
        (
            ("projector.*", f"{projector}*"),
            ("lm_head.*", f"{layout.head}*"),
            ("*", f"{layout.text}*"),
        ),
        ignored=stale | frozenset(key for key in keys if key.startswith(tower) and not key.startswith(projector)),
    )
    seen = NameTable(
        (("tower.vision_model.*", f"{tower}{inner}*"), ("tower.*", f"{tower}{inner}*")),
        under=tower,
        others=(projector,),
        ignored=stale,
    )
    return Names(language, seen)
