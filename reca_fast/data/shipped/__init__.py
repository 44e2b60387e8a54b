"""Pictures that ship with the package: `data.source: shipped:shapes`. Tiny recipes and first tries need no data.

`shapes/` holds 48 pictures of 96 x 96 pixels and metadata.jsonl with a short and a long caption of each;
`shapes.conversations.json` asks and answers questions about them, in LLaVA's format. `draw.py` has drawn them.
"""

from pathlib import Path

from reca_fast.errors import UserError, did_you_mean

PREFIX = "shipped:"
"""Begins the name of what ships, where a path could stand as well."""
FOLDER = Path(__file__).parent
NAMES = ("shapes", "shapes.conversations.json")


def located(name: str) -> str:
    """The path of what ships under a name such as shipped:shapes; every other name as it is.

    Raises:
        UserError: nothing ships under this name.
    """
    if not name.startswith(PREFIX):
        return name
    inside = name.removeprefix(PREFIX)
    if inside not in NAMES:
        known = " and ".join(PREFIX + each for each in NAMES)
        raise UserError(f"{name} does not ship with the package, only {known}.{did_you_mean(inside, NAMES)}")
    return str(FOLDER / inside)
