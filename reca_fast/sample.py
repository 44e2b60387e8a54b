"""The words that every room uses, and the training example that is made of them.

picture      pixels, uint8 [H, W, 3]; code calls the tensor `image`
record       a picture as a source holds it: encoded bytes, a key, and perhaps captions
condition    a picture resized for the understanding encoder, usually smaller than the target
target       a picture resized for the generation side, which learns to draw it
caption      a text about a picture that came with it
conversation questions about a picture and their answers, in turns, where instruction data take the place of captions
template     a sentence of this project that asks for the description of a picture
prompt       the text of one sample: a template for the task `reca`, a caption for the others
task         what a sample teaches, and the term of the loss that it adds to: `reca`, `t2i` or `i2t`
sample       one training example: condition, target and prompt, of which some may be absent
pack         samples that share one forward pass, chosen so that together they fill a budget of tokens
batch        a pack as a model takes it: tensors, with every random number of the step already drawn
lane         one of the `data.packs_per_step` lines of packs; each gives one pack to every step
stream       a part of the records, which lanes go through for some of the tasks in an order of its own
step         one update of the weights, from the packs of all lanes

Data flow one way: source -> record -> sample -> pack -> batch -> model -> loss -> update -> checkpoint.
"""

from collections.abc import Mapping
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
class Turn:
    """One round of a conversation about a picture."""

    question: str  # empty where the answer is the caption of a picture, which nobody asked for
    answer: str  # what the model learns to say


@dataclass(frozen=True)
class Text:
    """A prompt as token ids, without the markers that a model puts around it."""

    ids: tuple[int, ...]
    said: tuple[tuple[int, int], ...] = ()
    """Parts [start, stop) of `ids` that the model learns to say, in their order: these tokens are labels. A part that
    ends with the text has the model's end marker as a label too.
    """

    @property
    def supervised(self) -> bool:
        """Whether the model learns to say any of it."""
        return bool(self.said)


@dataclass(frozen=True)
class Encoded:
    """What a model's frozen encoders made of one picture, in place of its pixels."""

    width: int  # of the picture, in pixels
    height: int
    tensors: Mapping[str, Tensor]  # by names of the model's own, see `Model.encode_condition`


@dataclass(frozen=True)
class Sample:
    """One training example, the same for every model.

    A sample may serve several tasks at once: its caption may be supervised, say, while its target is drawn too. For
    `Model.sample`, a sample without tasks and target says what a new picture is to be drawn from.
    """

    key: str  # unique name of the source record, e.g. "shard-00.tar/000123"
    tasks: tuple[str, ...]  # those of TASKS that it serves
    condition: Tensor | None  # uint8 [H, W, 3]
    target: Tensor | None  # uint8 [H, W, 3]
    text: Text | None  # None when data.text_dropout left it out
    encoded_condition: Encoded | None = None  # from a cache, in place of `condition`
    encoded_target: Encoded | None = None  # from a cache, in place of `target`

    @property
    def condition_size(self) -> tuple[int, int] | None:
        """Width and height of the condition in pixels; None without one."""
        return _size(self.condition, self.encoded_condition)

    @property
    def target_size(self) -> tuple[int, int] | None:
        """Width and height of the target in pixels; None without one."""
        return _size(self.target, self.encoded_target)


def _size(pixels: Tensor | None, encoded: Encoded | None) -> tuple[int, int] | None:
    if encoded is not None:
        return encoded.width, encoded.height
    return None if pixels is None else (pixels.shape[1], pixels.shape[0])
