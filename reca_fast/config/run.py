"""A whole run."""

from dataclasses import dataclass, field
from typing import Annotated

from reca_fast.schema import NonNegativeInt, PositiveInt, Range

from .data import DataConfig
from .declare import Place, Seed, fixed, free, neutral, rounding
from .lora import LoraConfig
from .memory import MemoryConfig
from .model import ModelConfig
from .optim import LossWeights, OptimConfig
from .parallel import ParallelConfig
from .sampling import SamplingConfig


@dataclass
class RunConfig:
    """RECA post-training: pictures and a checkpoint go in, a trained checkpoint comes out."""

    out: Place = neutral("runs/reca")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard events, sample grids."""
    steps: PositiveInt = free(1000)
    """Optimizer steps in all."""
    seed: Seed = fixed(4396)
    """Seed of every random number of training: noise, timesteps, masks."""
    device: str = rounding("auto")
    """auto, cpu or cuda."""
    deterministic: bool = rounding(False)
    """On a GPU, use only algorithms that add numbers in a fixed order: two runs then agree bit for bit, as they do on a
    CPU. Slower, above all in attention's backward pass.
    """
    model: ModelConfig = field(default_factory=ModelConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(guidance=1.0))
    save_every: NonNegativeInt = neutral(250)
    """Steps between checkpoints; the last step is saved in any case, with 0 it alone."""
    keep: PositiveInt = neutral(2)
    """Checkpoints kept; older ones are removed after a newer one is whole."""
    resume: bool = neutral(True)
    """Go on from the newest whole checkpoint in the run folder, if there is one."""
    verify_checkpoint: bool = neutral(True)
    """Compare a checkpoint with its checksums before going on from it: it is read once more, at 1 GB/s or faster."""
    log_every: PositiveInt = neutral(1)
    """Steps between two lines of metrics."""
    sample_every: NonNegativeInt = neutral(0)
    """Steps between grids of reconstructed pictures; 0 is off."""
    sample_count: Annotated[int, Range(1, 1024)] = neutral(4)
    """Pictures in a grid."""
    profile: bool = neutral(False)
    """Write a torch profiler trace of steps 3 to 5 to the run folder."""
