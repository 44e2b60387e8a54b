"""Rules of optimizers: how weights and states follow from gradients. One file for each library."""

import torch

from reca_fast.config import OptimConfig

from .adafactor import Adafactor
from .adamw import AdamW
from .kind import Kind, Now, Weight
from .muon import Muon
from .of_bitsandbytes import AdamW8bit
from .of_torchao import AdamWLowBit

__all__ = ["Kind", "Now", "Weight", "open_kind"]


def open_kind(config: OptimConfig, device: torch.device) -> Kind:
    """The rule that `optim.kind` names.

    Args:
        device: of the updates.

    Raises:
        UserError: its library is not installed, or it does not work on the device.
    """
    match config.kind:
        case "adamw":
            return AdamW(config)
        case "adamw8bit" | "paged_adamw8bit":
            return AdamW8bit(config, device, paged=config.kind.startswith("paged"))
        case "adamw8bit_ao" | "adamw4bit_ao":
            return AdamWLowBit(config, device, bits=8 if config.kind == "adamw8bit_ao" else 4)
        case "muon":
            return Muon(config)
        case "adafactor":
            return Adafactor()
