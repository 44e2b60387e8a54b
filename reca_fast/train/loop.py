"""The loop, on one screen."""

from reca_fast.data.outcomes import describe
from reca_fast.memory import whole_root

from .saved import Saved
from .signals import StopRequest
from .state import Run, load_run, save_run
from .step import train_step


def train(run: Run, saved: Saved | None = None) -> None:
    """Go on from `saved`, or begin; train until `config.steps`, or until a signal asks to stop. The newest state is
    saved either way.

    Raises:
        KeyboardInterrupt: after the save, when it was Ctrl-C that asked and steps are left.
    """
    config = run.config
    if saved is not None:
        load_run(run, saved)
    run.telemetry.start(run.step, config.steps)
    with StopRequest() as stop, run.telemetry.profiler() as profiler:
        while run.step < config.steps:
            packs = next(run.loader)
            stats = train_step(run.adapter, packs, run.step, config, run.optimizer, run.average, run.processes)
            run.step += 1
            stopping = run.processes.any(stop.requested)
            saving = stopping or run.step == config.steps or _due(run.step, config.save_every)
            if saving or _due(run.step, config.log_every):
                run.telemetry.log(run.step, stats)  # also refuses a loss that is not finite, before it is saved
            if _due(run.step, config.sample_every):
                with run.telemetry.clock_stopped(), whole_root(run.adapter.module):
                    run.grids.write(run.step)
            if saving:
                with run.telemetry.clock_stopped():
                    save_run(run)
            if profiler is not None:
                profiler.step()
            if stopping:
                break
    run.telemetry.finish(run.step, describe(run.processes.gather(run.loader.report())))
    if stop.interrupted and run.step < config.steps:
        raise KeyboardInterrupt


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
