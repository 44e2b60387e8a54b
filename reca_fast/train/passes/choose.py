"""The passes that a configuration asks for."""

from reca_fast.config import RunConfig
from reca_fast.memory import HostWeights, on_host, swapped
from reca_fast.models import Model
from reca_fast.optim import Update
from reca_fast.train.distributed import Processes

from .base import Passes
from .keepers import Keeper, OnDevice, OnHost
from .layer_major import LayerMajor
from .pack_major import PackMajor


def open_passes(config: RunConfig, model: Model, update: Update, processes: Processes) -> Passes:
    """The passes of a training run. Weights that its levers keep in host memory move into an arena there.

    Args:
        model: filled; what lives on the host was placed there.
        update: whose groups are those of `model.blocks()`, and one more.
        processes: that train together; each holds all weights in the order block by block.
    """
    options, device = config.memory, processes.device
    if options.order == "pack":
        return PackMajor(model, update, device, config.parallel)
    keeper: Keeper | None = None
    if options.gradients == "device":
        keeper = OnDevice()
    elif options.gradients == "host":
        keeper = OnHost([group.parameters for group in update.groups], device)
    blocks = model.blocks()
    away = swapped(len(blocks), options.swap)
    trained = [part if number in away else [] for number, part in enumerate(on_host(blocks, trained=True))]
    return LayerMajor(
        model,
        update,
        device,
        keeper,
        frozen=HostWeights(on_host(blocks, trained=False), device) if options.frozen_on == "host" else None,
        trained=HostWeights(trained, device) if away else None,
        sum_over=processes.sum_tensor,
    )
