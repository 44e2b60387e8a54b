"""The loop, on one screen."""

from typing import Any

from reca_fast.checkpoints import CheckpointStore
from reca_fast.data.loader import PackLoader
from reca_fast.data.outcomes import describe
from reca_fast.evaluation.grids import GridWriter
from reca_fast.memory import whole_root

from .handover import Handover
from .room import out_of_memory_is_a_user_error
from .signals import StopRequest
from .state import Run, save_run
from .step import train_step
from .telemetry import Telemetry


def loop(
    run: Run,
    loader: PackLoader[Any],
    store: CheckpointStore,
    telemetry: Telemetry,
    grids: GridWriter,
    handover: Handover,
) -> None:
    """Take steps until `config.steps`, or until a signal asks to stop. The newest state is saved either way.

    Raises:
        UserError: too many steps one after another were skipped (`optim.max_skipped_steps`).
        KeyboardInterrupt: after the save, when it was Ctrl-C that asked and steps are left.
    """
    config = run.config
    telemetry.start(run.step, config.steps)
    with StopRequest() as stop, telemetry.profiler() as profiler, out_of_memory_is_a_user_error(run):
        while run.step < config.steps:
            packs = handover.take(loader)
            stats = train_step(run, packs)
            stopping = run.processes.any(stop.requested)
            saving = stopping or run.step == config.steps or _due(run.step, config.save_every)
            if _due(run.step, config.sample_every):
                with telemetry.clock_stopped(), whole_root(run.model.module):
                    telemetry.judge(run.step, grids.write(run.step))
            if saving or _due(run.step, config.log_every):
                telemetry.log(run.step, stats, run.skipped.read())
                run.skipped.check(store.advice)
            if saving:
                with telemetry.clock_stopped():
                    save_run(run, loader, store)
            if profiler is not None:
                profiler.step()
            if stopping:
                break
    telemetry.conclude(run.step, run.skipped.total, describe(run.processes.gather(loader.report())))
    if stop.interrupted and run.step < config.steps:
        raise KeyboardInterrupt


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
