"""Which prompt each picture of a benchmark was drawn from, read back from the manifest and the benchmark's prompts."""

from pathlib import Path

from reca_fast.errors import UserError
from reca_fast.schema import from_dict, read_json

from . import LAYOUTS, layout_of
from .layout import Request
from .manifest import MANIFEST_FILE, Manifest
from .reading import checksum_of

DEPTH = 4
"""So many folders above the pictures a manifest may lie, as GEdit-Bench's does: MODEL/fullset/TASK/LANGUAGE/KEY.png."""


def prompts_of_pictures(folder: Path, prompts: Path) -> dict[str, str] | None:
    """The prompts of the pictures of a benchmark, by each picture's path within `folder`, without its ending.

    Args:
        folder: the folder of a run of `generate --layout`, or one in it.
        prompts: the benchmark's own file of prompts, or the folder of them.

    Returns:
        None where no manifest says that the pictures were drawn for a benchmark.

    Raises:
        UserError: the pictures were drawn from other prompts, or the manifest is damaged.
    """
    folder = folder.absolute()
    outs = [folder, *folder.parents][: DEPTH + 1]
    out = next((each for each in outs if (each / MANIFEST_FILE).is_file()), None)
    if out is None:
        return None
    manifest = from_dict(Manifest, read_json(out / MANIFEST_FILE), str(out / MANIFEST_FILE))
    if manifest.layout not in LAYOUTS:
        raise UserError(
            f"{out / MANIFEST_FILE} names the layout {manifest.layout!r}, which is none of {list(LAYOUTS)}."
        )
    layout = layout_of(manifest.layout)
    origin = Path(manifest.origin) if manifest.origin else None
    read = layout.read(Request(prompts, manifest.per_prompt, manifest.category, origin, manifest.model.folder))
    if checksum_of(read.files) != manifest.prompts.sha256:
        raise UserError(f"{folder} was drawn from other prompts than {prompts}: {MANIFEST_FILE} has another sha256.")
    places = {out / layout.folder / output.path: item.prompt for item in read.items for output in item.outputs}
    return {
        place.relative_to(folder).with_suffix("").as_posix(): prompt
        for place, prompt in places.items()
        if place.is_relative_to(folder)
    }
