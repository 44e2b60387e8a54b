"""A run, and its way into a checkpoint and back: weights, optimizer, average, place in the data, counters, and the
state of every random number generator.
"""

import base64
import random
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from reca_fast import __version__
from reca_fast.checkpoints import CheckpointStore
from reca_fast.config import RunConfig
from reca_fast.data.loader import PackLoader
from reca_fast.errors import UserError
from reca_fast.models import Model
from reca_fast.optim import MovingAverage, SkippedSteps, Update

from .distributed import Processes
from .passes import Passes
from .saved import Content, Generators, Saved, SavedState, as_json


@dataclass
class Run:
    """What is trained, and how far it is: all that a step reads or changes."""

    config: RunConfig
    processes: Processes
    model: Model
    update: Update
    passes: Passes
    average: MovingAverage | None
    skipped: SkippedSteps
    content: Content = field(default_factory=dict)
    """Checksums of the base and of the data, which every checkpoint holds."""
    step: int = 0
    """Steps taken, skipped ones included."""


def save_run(run: Run, loader: PackLoader[Any], store: CheckpointStore) -> None:
    """Write a checkpoint. All processes call it, after they have read `run.skipped`.

    Raises:
        UserError: a number is inf or NaN, or the disk is full. Earlier checkpoints stay.
    """
    run.passes.settle()
    parts = run.processes.gather(loader.state_dict())
    state = SavedState(
        version=__version__,
        step=run.step,
        skipped_in_a_row=run.skipped.in_a_row,
        base=str(run.config.model.path),
        content=run.content,
        config=as_json(run.config),
        lanes={lane: state for part in parts for lane, state in part.items()},
        generators=run.processes.gather(_generators()),
    )
    store.save(run.step, tensors_of(run), asdict(state))


def load_run(run: Run, loader: PackLoader[Any], store: CheckpointStore, saved: Saved) -> None:
    """Put the run where a checkpoint left it. All processes call it.

    Raises:
        UserError: it is of another model, or damaged.
    """
    state = saved.state
    store.load(saved.path, tensors_of(run))
    loader.load_state_dict(state.lanes)
    if run.processes.rank < len(state.generators):
        try:
            _restore_generators(state.generators[run.processes.rank])
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise UserError(f"{saved.path} is damaged: {error}.") from None
    run.step, run.skipped.in_a_row = state.step, state.skipped_in_a_row


def tensors_of(run: Run) -> dict[str, dict[str, torch.Tensor]]:
    """Everything that training changes, by kind and name: the run's own tensors, to be read or filled in place."""
    sections: dict[str, dict[str, torch.Tensor]] = {"model": {**trained(run.model.module)}, **run.update.state()}
    return sections | ({"average": run.average.average} if run.average is not None else {})


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _generators() -> Generators:
    """State of every random number generator of this process.

    The training step draws from none of them (its randomness is keyed by the pack); they are saved for whatever else
    may.
    """
    numpy = np.random.get_state()
    assert isinstance(numpy, tuple), "the legacy form"
    kind, keys, position, has_gauss, gauss = numpy
    version, words, next_gauss = random.getstate()
    return Generators(
        torch=_text(torch.get_rng_state()),
        python=(version, list(words), next_gauss),
        numpy=(kind, keys.tolist(), position, has_gauss, gauss),
        cuda=_text(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None,
    )


def _restore_generators(states: Generators) -> None:
    torch.set_rng_state(_bytes(states.torch))
    if torch.cuda.is_available() and states.cuda is not None:
        torch.cuda.set_rng_state(_bytes(states.cuda))
    version, words, next_gauss = states.python
    random.setstate((version, tuple(words), next_gauss))
    kind, keys, position, has_gauss, gauss = states.numpy
    np.random.set_state((kind, np.array(keys, np.uint32), position, has_gauss, gauss))


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text, validate=True)), dtype=torch.uint8)
