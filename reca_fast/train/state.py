"""A run, and what resuming it needs: trained weights, moments, average, data position, counters, every RNG."""

import base64
import json
import random
from dataclasses import asdict, dataclass
from functools import reduce
from operator import getitem
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from reca_fast import __version__
from reca_fast.checkpoints import CheckpointStore
from reca_fast.config import RunConfig, settings
from reca_fast.data.loader import PackLoader
from reca_fast.errors import UserError
from reca_fast.models import Adapter
from reca_fast.optim import MovingAverage

from .distributed import Processes
from .grids import GridWriter
from .telemetry import Telemetry

_TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True)


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
    step: int = 0


def save_run(run: Run) -> None:
    """Write a checkpoint after `run.step` updates; all processes call it."""
    lanes = {lane: state for part in run.processes.gather(run.loader.state_dict()) for lane, state in part.items()}
    generators = run.processes.gather(_generators())
    state = {
        "version": __version__,
        "step": run.step,
        "base": str(run.config.model.path),
        "config": as_json(run.config),
        "lanes": lanes,
        "generators": generators,
    }
    run.store.save(run.step, _tensors(run), state)


def load_run(run: Run) -> None:
    """Go on from the newest whole checkpoint, when there is one and the configuration allows it."""
    run.store.sweep()
    newest = run.store.latest()
    for step, path in run.store.named():
        if newest is None or step > newest[0]:
            run.telemetry.console.print(f"{path} is damaged and left aside.")
    if newest is None or not run.config.resume:
        if newest is not None:
            raise UserError(
                f"{run.store.folder} holds checkpoints and --resume is false; name another --out, or remove them."
            )
        return
    step, path = newest
    saved = run.store.read_state(path)
    _check_same_run(saved, run)
    tensors = _tensors(run)
    run.store.load(path, tensors)
    set_optimizer_state_dict(run.adapter.module, run.optimizer, tensors["optimizer"], options=_TRAINED_ONLY)
    run.loader.load_state_dict(saved["lanes"])
    if run.processes.rank < len(saved["generators"]):
        _restore_generators(saved["generators"][run.processes.rank])
    run.step = step


def _check_same_run(saved: dict[str, Any], run: Run) -> None:
    """Refuse, by name, a setting that a run keeps for its life and that is another one now."""
    config = as_json(run.config)
    for name, resume, by in settings(run.config):
        if resume == "fixed" and by == "value":
            before, now = (reduce(getitem, name.split("."), tree) for tree in (saved["config"], config))
            if before != now:
                raise UserError(
                    f"The saved run had {name}={before}, now it is {now}; set it back, or name another --out."
                )


def as_json(config: RunConfig) -> dict[str, Any]:
    """The configuration as it comes back from a file: nested dicts, tuples as lists."""
    return json.loads(json.dumps(asdict(config)))


def _tensors(run: Run) -> dict[str, Any]:
    tensors: dict[str, Any] = {
        "model": get_model_state_dict(run.adapter.module, options=_TRAINED_ONLY),
        "optimizer": get_optimizer_state_dict(run.adapter.module, run.optimizer, options=_TRAINED_ONLY),
    }
    if run.average is not None:
        tensors["average"] = run.average.average
    return tensors


def _generators() -> dict[str, Any]:
    """State of every random number generator of this process, JSON-able.

    The training step draws from none of them (its randomness is keyed by the pack); they are saved for whatever else
    may.
    """
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    state = np.random.get_state()
    assert isinstance(state, tuple), "the legacy form"
    kind, keys, *rest = state
    return {
        **{name: base64.b64encode(tensor.numpy().tobytes()).decode() for name, tensor in states.items()},
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
    }


def _restore_generators(states: dict[str, Any]) -> None:
    def tensor(name: str) -> torch.Tensor:
        return torch.frombuffer(bytearray(base64.b64decode(states[name])), dtype=torch.uint8)

    torch.set_rng_state(tensor("torch"))
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(tensor("cuda"))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(states["numpy"]))
