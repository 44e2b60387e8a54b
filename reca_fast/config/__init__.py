"""Every setting of a run, as typed dataclasses, one file for each group. YAML recipes fill them, the command line
overrides them.

Each setting is declared with what a change of it means for a run that is resumed (`declare.py`). What several settings
allow together stands in `config/rules.py`. Importing this package must stay cheap (no torch): `reca-fast --help` does.
"""

from .auxiliary import AuxiliaryConfig
from .data import DataConfig, Fit, ResizeConfig, TaskWeights
from .declare import HOME, Pixels, Place, Setting, settings
from .lora import LoraConfig
from .memory import DrawingMemory, Matmul, MemoryConfig
from .model import Attention, Condition, Kernels, ModelConfig, Precision
from .optim import LossWeights, OptimConfig
from .parallel import ParallelConfig
from .run import RunConfig
from .sampling import PRESETS, SamplingConfig

__all__ = [
    "HOME",
    "PRESETS",
    "Attention",
    "AuxiliaryConfig",
    "Condition",
    "DataConfig",
    "DrawingMemory",
    "Fit",
    "Kernels",
    "LoraConfig",
    "LossWeights",
    "Matmul",
    "MemoryConfig",
    "ModelConfig",
    "OptimConfig",
    "ParallelConfig",
    "Pixels",
    "Place",
    "Precision",
    "ResizeConfig",
    "RunConfig",
    "SamplingConfig",
    "Setting",
    "TaskWeights",
    "settings",
]
