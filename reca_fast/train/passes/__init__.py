"""The forward and backward passes of a step's packs, in one order or another, up to changed weights."""

from .base import Passes, Weigh
from .choose import open_passes
from .keepers import Keeper, OnDevice, OnHost
from .layer_major import LayerMajor
from .pack_major import PackMajor

__all__ = ["Keeper", "LayerMajor", "OnDevice", "OnHost", "PackMajor", "Passes", "Weigh", "open_passes"]
