"""One optimizer step over a global batch. The host never waits for the device here."""

from collections.abc import Sequence
from typing import Any

import torch

from reca_fast.data.loader import Pack, Served
from reca_fast.objectives import weighted_loss
from reca_fast.sample import TASKS

from .state import Run
from .stats import StepStats


def train_step(run: Run, packs: Sequence[Pack[Any]]) -> StepStats:
    """Forward and backward passes of this process's packs, then one update; `run.step` counts it.

    The update is skipped, and noted in `run.skipped`, when a loss or the gradient norm is inf or NaN on some process:
    weights, optimizer and moving average stay as they are.

    Args:
        packs: this process's share of the global batch. The other processes are in the same step with theirs.
    """
    config, processes = run.config, run.processes
    local = [sum(pack.batch.counts.get(task, 0) for pack in packs) for task in TASKS]
    local += [sum(pack.num_tokens for pack in packs), sum(len(pack.keys) for pack in packs)]
    for task in TASKS:
        of_task = [pack.served.get(task, Served(0, 0)) for pack in packs]
        local += [sum(each.samples for each in of_task), sum(each.tokens for each in of_task)]
    summed = processes.sum(local)
    counts = dict(zip(TASKS, summed, strict=False))
    tokens, images, *of_tasks = summed[len(TASKS) :]
    served = {task: Served(*of_tasks[2 * n : 2 * n + 2]) for n, task in enumerate(TASKS)}

    run.update.begin(run.step)
    batches = [pack.batch if pack.copy is None else pack.copy for pack in packs]
    sums = run.passes.gradients(batches, lambda parts: weighted_loss(parts, counts, config.loss))

    terms = [term for term, count in counts.items() if count]
    nothing = torch.zeros((), device=processes.device)  # of a term that no pack of this process has tokens for
    totals = processes.sum_tensor(torch.stack([sums.get(term, nothing).float() for term in terms]))
    finished = run.passes.update(totals)
    if run.average is not None:
        run.average.update(finished.applied)
    run.step += 1
    run.skipped.note(run.step, (*(f"loss_{term}" for term in terms), "grad_norm"), finished.finite)
    flops = sum(run.model.flops(pack.batch) for pack in packs)
    return StepStats(terms, totals, counts, finished.grad_norm, finished.lr, tokens, images, flops, served)
