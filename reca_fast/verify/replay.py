"""Computing a parity case again."""

from pathlib import Path

import torch
from torch import Tensor

from reca_fast.config import Attention
from reca_fast.errors import UserError
from reca_fast.models import MODELS, Case, model_class


def open_case(folder: Path) -> Case:
    """The case in a folder, read by the architecture that it is one of.

    Raises:
        UserError: a file is missing or damaged, or no architecture here knows such a case.
    """
    for name in MODELS:
        if case := model_class(name).case(folder):
            return case
    raise UserError(f"{folder / 'config.json'} describes none of the models {', '.join(MODELS)}.")


def replay(
    case: Case, folder: Path, *, attention: Attention, dtype: torch.dtype, weights: Path | None
) -> dict[str, Tensor]:
    """Every tensor of the case, computed, by its name.

    Raises:
        UserError: the case contradicts itself, or this machine cannot compute it as asked.
    """
    try:
        return dict(case.replay(attention=attention, dtype=dtype, weights=weights))
    except KeyError as error:
        raise UserError(f"{folder} cannot be replayed: it lacks {error}.") from error
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(f"{folder} cannot be replayed: {' '.join(str(error).split())}.") from error
