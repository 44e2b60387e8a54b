"""Stages: runs one after another in one command, each from the weights that the one before it has learned.

Every stage is a run like any other, in a folder of its own below `out`, so it stops, resumes and exports like one.
Between two stages the trained weights are exported; the next stage's base is that checkpoint folder.
"""

import gc
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from reca_fast.config import RunConfig
from reca_fast.config.rules import check_run
from reca_fast.errors import UserError, writing

from .distributed import Processes
from .run import store_of, train_together, unwritable_folder_is_a_user_error
from .saved import SavedState, check_fixed, read_saved

EXPORTED = "exported"
"""The folder in a stage's run folder that holds its weights as a checkpoint, for the next stage."""


def train_stages(stages: Sequence[tuple[str, RunConfig]], export: Callable[[Path, Path], None]) -> None:
    """Train every stage that is not finished, in order. Returns when all are, or when asked to stop; the same command
    goes on from there.

    Args:
        stages: name and configuration; the run folder is the name below the configuration's `out`.
        export: writes the newest checkpoint of a run folder as a checkpoint folder.

    Raises:
        UserError: like `train`. What excludes a later stage is told before the first one begins.
    """
    meeting = {(config.device, config.parallel.replicate) for _, config in stages}
    if len(meeting) > 1:
        raise UserError("Stages share their processes: device and parallel.replicate must be the same in all of them.")
    with Processes() as processes:
        for _, config in stages:
            check_run(config, processes.world)
        processes.join(*meeting.pop())
        base = ""
        for number, (name, config) in enumerate(stages, start=1):
            folder = Path(config.out) / name
            model = replace(config.model, path=base, weights="auto") if base else config.model
            config = replace(config, out=str(folder), model=model)
            if processes.is_main:
                print(f"Stage {number} of {len(stages)}: {folder}")
            with unwritable_folder_is_a_user_error(folder):
                if not _was_finished(config, processes):
                    _train(config, processes, folder)
                    saved = _newest(config, processes)
                    if saved is None or saved.step < config.steps:
                        return  # it was asked to stop
                if number < len(stages):
                    base = _export(folder, processes, export)


def _train(config: RunConfig, processes: Processes, folder: Path) -> None:
    if processes.is_main:
        shutil.rmtree(folder / EXPORTED, ignore_errors=True)  # of fewer steps, where the stage was made longer since
    train_together(config, processes)
    gc.collect()
    if processes.device.type == "cuda":
        torch.cuda.empty_cache()


def _was_finished(config: RunConfig, processes: Processes) -> bool:
    """Whether an earlier command has trained this stage to its end; its fixed settings must be the same then."""
    saved = _newest(config, processes)
    if saved is None or saved.step < config.steps:
        return False
    check_fixed(saved, config)
    return True


def _newest(config: RunConfig, processes: Processes) -> SavedState | None:
    """What the newest checkpoint of a run says of it; None when there is none."""
    newest = store_of(config, processes).newest(verify=False)
    return read_saved(newest) if newest else None


def _export(folder: Path, processes: Processes, export: Callable[[Path, Path], None]) -> str:
    """Export a stage's weights, unless that is done; the checkpoint folder, which appears when it is whole."""
    whole, begun, refusal = folder / EXPORTED, folder / f".{EXPORTED}", ""
    if processes.is_main and not whole.is_dir():
        try:
            with writing(begun):
                shutil.rmtree(begun, ignore_errors=True)
                export(folder, begun)
                os.rename(begun, whole)
        except UserError as error:
            refusal = str(error)
    if refusal := processes.agree(refusal):
        raise UserError(refusal)
    return str(whole)
