"""The recipes that ship with the package."""

import re
from pathlib import Path

import yaml

SHIPPED = Path(__file__).parent.parent / "recipes"


def shipped() -> dict[str, Path]:
    """The recipes of this package by name; one in a folder is called by both, such as ablations/blur."""
    return {path.relative_to(SHIPPED).with_suffix("").as_posix(): path for path in SHIPPED.rglob("*.yaml")}


def recipe_for_card(published: str, gigabytes: float) -> str | None:
    """Name of the shipped recipe that is made for one card of this size, or for the next smaller one: those end in the
    card's gigabytes, such as bagel-24gb. None when there is none.

    Args:
        published: name of the model that the recipe trains.
        gigabytes: as the card is sold.
    """
    sizes = {}
    for name, path in shipped().items():
        size = re.search(r"-(\d+)gb$", name)
        if size and yaml.safe_load(path.read_text()).get("model", {}).get("name") == published:
            sizes[int(size[1])] = name
    fitting = [size for size in sizes if size <= gigabytes]
    return sizes[max(fitting)] if fitting else None
