"""A run from its parts: the model with its levers pulled and its weights in place, and the update of those that train.

Training and planning go through the same door, so that what is planned is what is trained.
"""

from collections.abc import Callable
from functools import partial

import torch

from reca_fast.config import RunConfig
from reca_fast.memory import apply_levers, fill_model, host_empty
from reca_fast.memory.adapters import decays
from reca_fast.models import Model
from reca_fast.optim import MovingAverage, SkippedSteps, open_update

from .distributed import Processes
from .freeze import freeze
from .passes import open_passes
from .room import check_room
from .state import Run, trained


def assemble(
    config: RunConfig,
    processes: Processes,
    model: Model,
    *,
    empty: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Run:
    """Pull the levers on a model that is on the meta device, give it its weights, and make its update.

    Args:
        processes: joined; the model goes to their device, and is shared out over them.
        empty: read no file; the weights hold no particular numbers. For planning.
        say: is told, in one line each, what levers decide in the first step.

    Raises:
        UserError: a file of weights is missing or damaged, or a lever cannot be pulled on this model.
    """
    freeze(model.module, config.model.freeze)
    apply_levers(
        *(model.module, model.blocks(), config.memory, config.lora),
        mesh=processes.mesh if config.memory.order == "pack" else None,  # block by block, each holds all weights
        parallel=config.parallel,
        compute_dtype=model.dtype,
        device=processes.device,
        say=say,
    )
    if processes.device.type == "cuda":
        total = torch.cuda.get_device_properties(processes.device).total_memory
        check_room(config, model, total, processes.world)
    has_cache = bool(config.data.cache)
    fill_model(model, processes.device, config.memory, empty=empty, encoders=not has_cache, seed=config.seed)
    parameters = trained(model.module)
    update = open_update(
        *(parameters, model.blocks(), partial(decays, model), config.optim, config.steps),
        device=processes.device,
        host_empty=host_empty,
        seed=config.seed,
    )
    return Run(
        config,
        processes,
        model,
        update,
        open_passes(config, model, update, processes),
        average=MovingAverage(parameters, config.optim.ema_decay) if config.optim.ema_decay else None,
        skipped=SkippedSteps(config.optim.max_skipped_steps),
    )
