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
        got = dict(case.replay(attention=attention, dtype=dtype, weights=weights))
    except KeyError as error:
        raise UserError(f"{folder} cannot be replayed: it lacks {error}.") from error
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"{folder} cannot be replayed: {' '.join(str(error).split())}.") from error
    if (broken := next((name for name, tensor in got.items() if not tensor.isfinite().all()), None)) is not None:
        raise UserError(
            f"{folder} gives NaN or infinite numbers, first in {broken}; its weights hold such, or are broken."
        )
    return got
