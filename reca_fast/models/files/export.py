"""What all exports do alike: a folder appears whole or not at all, and trained weights fit their places."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from torch import Tensor

from reca_fast.errors import UserError

from .weights import Weights
from .write import Change, after


def refuse_filled(folder: Path) -> None:
    """Raise UserError when there are files in the folder of an export."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} exists and is not empty; name another folder.")


@contextmanager
def exporting(folder: Path, last: str) -> Iterator[Path]:
    """Inside, files are written into `folder`, and the one that is called `last` under the path that is given here: it
    gets its name at the end. A folder without it is removed.

    Raises:
        UserError: the folder cannot be written.
    """
    out, unfinished = folder / last, folder / f"{last}.partial"
    try:
        yield unfinished
        unfinished.rename(out)
    except OSError as error:
        raise UserError(f"The export to {folder} failed and was removed: {error}.") from None
    finally:
        if not os.path.exists(out):
            shutil.rmtree(folder, ignore_errors=True)


def replacements(
    stored: Weights, keys: Mapping[str, str], trained: Mapping[str, Change], base: Path
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Key in the file -> what makes the new tensor of the stored one, for every trained weight.

    Args:
        stored: the base's weights.
        keys: name in the network -> key in the file.
        trained: name in the network -> weight, or what is made of the base's; each is asked for when it is written.
        base: the checkpoint folder of the base, for messages.

    Raises:
        UserError: the base has no place for a weight.
    """
    if strangers := trained.keys() - keys.keys():
        raise UserError(f"The training checkpoint holds {min(strangers)}, which {base} has no place for.")
    return {keys[name]: partial(fitting, trained, name, stored.shapes[keys[name]], base) for name in trained}


def fitting(trained: Mapping[str, Change], name: str, shape: tuple[int, ...], base: Path, stored: Tensor) -> Tensor:
    """The trained weight `name`, which must have the shape of the one that it replaces.

    Raises:
        UserError: it has another.
    """
    tensor = after(trained[name], stored)
    if tuple(tensor.shape) != tuple(shape):
        raise UserError(
            f"The training checkpoint holds {name} {list(tensor.shape)}, which {base} has no place for: there it is "
            f"{list(shape)}."
        )
    return tensor
