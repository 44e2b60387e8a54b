"""What `bench/on_gpu.py` runs, one file per stage, in order of worth.

Nothing here imports torch: the parent reads this page and must never touch the GPU.
"""

from typing import NamedTuple


class Stage(NamedTuple):
    """One file of this folder; its `hand_in(report)` hands in its figures."""

    name: str
    about: str
    cap: float  # seconds that it may take at most, whatever is left
    timed: bool  # it measures speed or memory and has the machine for itself; the others run side by side


STAGES = (
    Stage("environment", "versions, memory, a first kernel, which backends run", 40, False),
    Stage("smoke", "one training step of a tiny BAGEL per setting, every gradient against fp32 on the CPU", 130, False),
    Stage("attention", "every attention backend against float64", 60, False),
    Stage(
        "kernels", "every kernel against float64 in three dtypes, repeatable, without waiting for the host", 90, False
    ),
    Stage("ceilings", "what this card can do: copies and bf16 products at BAGEL's shapes", 40, True),
    Stage(
        "layers", "BAGEL's real width, as many layers as fit: time per phase, MFU, memory against prediction", 130, True
    ),
    Stage("planned", "real width, few layers, lever by lever: the planner's peak against the allocator's", 60, True),
    Stage("repeat", "a real-width step twice, pictures alone and beside others: what changes in any bit", 30, True),
    Stage("ops", "achieved bandwidth of every operation, beside eager and Liger", 90, True),
    Stage("profile", "where the device's time goes, kernel by kernel", 60, True),
    Stage("images", "the data path: pictures per second on this machine's cores", 25, True),
    Stage("demo", "150 steps of a tiny BAGEL, kernels against plain torch: do the loss curves agree", 80, True),
    Stage("peers", "the authors' layout of a step; every operation in other hands, torch.compile included", 120, True),
)
NAMES = tuple(stage.name for stage in STAGES)
