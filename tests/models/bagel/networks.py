"""BAGEL's network, empty or with the weights of a checkpoint folder, as several tests want it."""

from pathlib import Path

import torch

from reca_fast.memory import training_place
from reca_fast.models.bagel.config import BagelConfig
from reca_fast.models.bagel.network import Bagel
from reca_fast.models.bagel.weights import fill_bagel


def on_meta(config: BagelConfig, freeze_und: bool = True) -> Bagel:
    with torch.device("meta"):
        return Bagel(config, freeze_und=freeze_und)


def filled(folder: Path, *, frozen: torch.dtype = torch.float32, freeze_und: bool = True) -> Bagel:
    """As training fills it on a CPU: trained weights in fp32, frozen ones in the dtype `frozen`."""
    network = on_meta(BagelConfig.from_folder(folder), freeze_und)
    fill_bagel(network, folder / "ema.safetensors", training_place(frozen, "cpu"))
    return network
