"""The words that the rooms exchange, in the order in which data flows.

images -> samples -> packed batch -> condition -> model -> objective -> optimizer -> checkpoint

A source gives records, `data.samples` makes a `Sample` of each, a model packs samples into its own batch, and an
objective turns predictions into {task: sum of per-token losses}: sums, never means, since the step divides by the
global count.

Shape legend of the whole project: H, W pixels; P patch side; N tokens; D hidden width; C latent channels x patch area.
"""

from dataclasses import dataclass

from torch import Tensor

RECA, T2I, I2T = "reca", "t2i", "i2t"
TASKS = (RECA, T2I, I2T)


@dataclass(frozen=True)
class Sample:
    """One training example, as pictures and token ids; which model consumes it is not yet fixed.

    `reca`: understanding picture + template prompt -> the same picture. `t2i`: caption -> picture (no understanding
    picture). `i2t`: understanding picture -> caption (no target picture).
    """

    key: str  # unique name of the source record, e.g. "shard-00.tar/000123"
    task: str  # one of TASKS
    vit_image: Tensor | None  # uint8 [H, W, 3], resized for the understanding encoder
    vae_image: Tensor | None  # uint8 [H, W, 3], resized for the generation target
    prompt_ids: tuple[int, ...] | None  # text without markers; None when condition dropout removed it
