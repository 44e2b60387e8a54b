"""A run, and what resuming it needs: trained weights, moments, average, data position, counters, every RNG."""

import base64
import random
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from reca_fast import __version__
from reca_fast.checkpoints import CheckpointStore
from reca_fast.config import RunConfig
from reca_fast.data.loader import PackLoader
from reca_fast.errors import UserError
from reca_fast.evaluation.grids import GridWriter
from reca_fast.models import Adapter
from reca_fast.optim import MovingAverage

from .distributed import Processes
from .saved import Content, Generators, Saved, SavedState, as_json
from .telemetry import Telemetry

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""Of AdamW, per trained tensor."""


@dataclass
class Run:
    """Everything that a run holds; `step` counts the updates made."""

    config: RunConfig
    processes: Processes
    adapter: Adapter
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    loader: PackLoader[Any]
    store: CheckpointStore
    telemetry: Telemetry
    grids: GridWriter
    content: Content
    step: int = 0


def save_run(run: Run) -> None:
    """Write a checkpoint after `run.step` updates; all processes call it."""
    parts = run.processes.gather(run.loader.state_dict())
    state = SavedState(
        version=__version__,
        step=run.step,
        base=str(run.config.model.path),
        content=run.content,
        config=as_json(run.config),
        lanes={lane: state for part in parts for lane, state in part.items()},
        generators=run.processes.gather(_generators()),
    )
    run.store.save(run.step, _tensors(run), asdict(state))


def load_run(run: Run, saved: Saved) -> None:
    """Go on from a checkpoint.

    Raises:
        UserError: it is of another model, or damaged.
    """
    state = saved.state
    run.store.load(saved.path, _tensors(run))
    run.loader.load_state_dict(state.lanes)
    if run.processes.rank < len(state.generators):
        try:
            _restore_generators(state.generators[run.processes.rank])
        except (ValueError, RuntimeError, TypeError, IndexError) as error:
            raise UserError(f"{saved.path} is damaged: {error}.") from None
    run.step = state.step


def _tensors(run: Run) -> dict[str, dict[str, torch.Tensor]]:
    """Everything that training changes, by kind and name: the run's own tensors, to be read or filled in place."""
    trained = {name: p for name, p in run.adapter.module.named_parameters() if p.requires_grad}
    state = run.optimizer.state
    sections = {"model": trained, **{kind: {name: state[p][kind] for name, p in trained.items()} for kind in MOMENTS}}
    return sections | ({"average": run.average.average} if run.average is not None else {})


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
