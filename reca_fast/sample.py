"""The words that every room uses, and the training example that is made of them.

picture      pixels, uint8 [H, W, 3]; what a source holds, before any model is thought of
condition    the picture as the understanding encoder sees it, usually smaller than the target
target       the picture that the generation side has to draw
caption      text about a picture that came with it
template     a sentence of this project that asks for a description of a picture; used where no caption is
prompt       the text of one example: a template or a caption, as token ids
task         a term of the loss, and thereby what an example teaches: `reca`, `t2i` or `i2t`
sample       one training example: condition, target and prompt, of which some may be absent
pack         samples that share one forward pass, chosen so that together they fill a budget of tokens
batch        a pack as a model wants it: tensors, with every random number of the step already drawn

Data flow one way: images -> samples -> packed batch -> condition -> model -> objective -> optimizer -> checkpoint.
"""

from dataclasses import dataclass

from torch import Tensor

RECA = "reca"
"""Draw a picture again from its condition and a template."""
T2I = "t2i"
"""Draw a picture from its caption; there is no condition."""
I2T = "i2t"
"""Say the caption of a picture; there is no target."""
TASKS = (RECA, T2I, I2T)


@dataclass(frozen=True)
class Text:
    """A prompt as token ids, without the markers that a model puts around it."""

    ids: tuple[int, ...]
    supervised: bool = False  # whether its tokens are labels: the model learns to say them


@dataclass(frozen=True)
class Sample:
    """One training example. Which model consumes it is not yet fixed.

    A sample may serve several tasks at once, for instance a condition whose caption is supervised and which is also
    drawn again. In `Model.sample` a sample without tasks and target says what a new picture is drawn from.
    """

    key: str  # unique name of the source record, e.g. "shard-00.tar/000123"
    tasks: tuple[str, ...]  # of TASKS: the terms of the loss to which it contributes
    condition: Tensor | None  # uint8 [H, W, 3]
    target: Tensor | None  # uint8 [H, W, 3]
    text: Text | None  # None when condition dropout removed it
