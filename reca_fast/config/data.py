"""The data: where pictures come from and how they become packed batches."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from reca_fast.schema import NonNegativeFloat, PositiveInt, Probability, Range

from .declare import Pixels, Place, Seed, fixed, neutral, rounding

Fit = Literal["keep", "crop", "squash", "pad"]


@dataclass
class ResizeConfig:
    """Side limits of one picture, in pixels; both sides become multiples of the stride."""

    max_size: Pixels = fixed(224)
    """Longest side."""
    min_size: Pixels = fixed(224)
    """Shortest side, as far as the longest one allows it."""
    stride: Pixels = fixed(14)
    """Both sides become multiples of this."""
    max_pixels: Annotated[int, Range(1, 2**32)] = fixed(14 * 14 * 9 * 1024)
    """Area above which the picture is shrunk further."""
    fit: Fit = fixed("keep")
    """keep: the aspect ratio is kept, within the limits above. The others give a square of max_size x max_size, where
    min_size does not count: crop takes a square as wide as the shorter side, whose place along the longer one is drawn
    anew in every epoch, the same for condition and target; squash resizes both sides to max_size; pad puts the picture
    in the middle of a square of grey (127).
    """


@dataclass
class TaskWeights:
    """How often a sample is drawn for each task; they need not add up to 1. t2i and i2t need captions."""

    reca: NonNegativeFloat = fixed(1.0)
    """Draw the picture again from what the understanding encoder sees of it (RECA)."""
    t2i: NonNegativeFloat = fixed(0.0)
    """Draw the picture from its caption."""
    i2t: NonNegativeFloat = fixed(0.0)
    """Say the picture's caption."""


@dataclass
class DataConfig:
    """Where pictures come from and how they become packed batches."""

    source: Place = fixed("", by="content")
    """A folder of pictures, tar shards (a file, a folder or a glob), parquet files, or a Hugging Face dataset (folder
    or hub id). shipped:shapes are 48 small pictures of this package, for a first try; toy:understanding, toy:base,
    toy:posttraining and toy:validation are pools of its toy world, whose captions are called sparse and dense.
    """
    cache: Place = neutral("")
    """A folder that `reca-fast cache` made of these pictures with encoders like the model's: no picture is decoded
    then, and neither the VAE nor the vision encoder is loaded. Any model with the same encoders may use it, a later
    stage of `stages` or a trained checkpoint too. The losses are those of training without it, bit for bit where the
    cache was made on the same kind of machine. source may be empty; where it is given, it is compared with what the
    cache was made of. Captions are those of when it was made. It excludes nothing; sample_every needs source as well,
    and loads the encoders for each grid. With fit=crop, every epoch sees the crops of the first one.
    """
    split: str = fixed("train")
    """Split of a Hugging Face dataset."""
    image_column: str = fixed("image")
    """Column with the picture (parquet, Hugging Face)."""
    caption_column: str = fixed("caption")
    """Column with the caption (parquet, Hugging Face, a folder's metadata file); folders and tars take the .txt,
    .caption or .json beside the picture.
    """
    caption_name: str = fixed("")
    """Which caption to take where a record has several by name, as in {"short": ..., "long": ...}: a JSON file beside
    the picture, or a cell of such a table. Empty: of all of them, each epoch draws one.
    """
    instructions: Place = fixed("", by="content")
    """Conversations about pictures that i2t learns from in place of captions: a JSON or JSONL file in LLaVA's layout, a
    list of {id, image, conversations: [{from: human | gpt, value}, ...]}. The answers are learned. Conversations
    without a picture, or with one that is missing, are left out and counted. The other tasks draw from source. With a
    cache, they are those of when it was made. toy:understanding and the other pools of the toy world have their dense
    captions as answers.
    """
    instruction_images: Place = fixed("", by="content")
    """Where the pictures of the conversations are, by the names that stand there: a folder or tar shards. Empty: in the
    folder of instructions.
    """
    tasks: TaskWeights = field(default_factory=TaskWeights)
    mix: Literal["sample", "pack"] = fixed("sample")
    """sample: every sample draws its task by the weights in tasks, and packs hold samples of several tasks; pack: every
    pack serves one task, and the packs of all lanes take turns in exactly the ratio of the weights. Weights of 2, 2 and
    0 with packs_per_step=4 give two packs of reca and two of i2t in every step.
    """
    serve: Literal["one", "all"] = fixed("one")
    """one: a sample serves one task; all: every sample serves each task with a weight above 0 at once, for models that
    learn them together. What a model cannot join is refused.
    """
    seed: Seed = fixed(42)
    """Seed of the order of the pictures, of the choice of templates and captions, and of text_dropout."""
    limit: Annotated[int, Range(0, 2**53)] = fixed(0)
    """How many records of source are used, 0 for all: the first ones of a shuffle by seed, so that a larger limit takes
    what a smaller one does, and more.
    """
    shuffle: bool = fixed(True)
    """Take the pictures in another order in every epoch; false takes them in the order of the source."""
    text_dropout: Probability = fixed(0.1)
    """Probability that a sample is trained without its prompt. Guidance compares with and without, so it needs both."""
    templates: Annotated[int, Range(0, 2**10)] = fixed(0)
    """How many of the templates reca asks with; 0 for all. 1 is "Describe this image in detail.", always."""
    own_templates: tuple[str, ...] = fixed(())
    """Sentences that reca asks with in place of the templates that ship; one that stands here twice is asked twice as
    often. templates says nothing then.
    """
    condition_resize: ResizeConfig = field(default_factory=lambda: ResizeConfig(224, 224, 14))
    """Size of the condition: the picture as the understanding encoder sees it."""
    target_resize: ResizeConfig = field(default_factory=lambda: ResizeConfig(1024, 512, 16))
    """Size of the target: the picture to be drawn."""
    blur_sigma: Annotated[float, Range(0, 1000)] = fixed(0.0)
    """Standard deviation of a Gaussian blur of the condition, in pixels of the resized condition; 0 is off."""
    resize: Literal["fast", "exact"] = fixed("fast")
    """fast: torch's uint8 antialiased bicubic (within two grey levels, five where a photograph is turned); exact:
    Pillow's, the authors' bits.
    """
    orientation: Literal["apply", "ignore"] = fixed("apply")
    """apply: turn pictures as their EXIF orientation says; ignore: take them as their pixels lie, like the authors."""
    max_image_pixels: Annotated[int, Range(1, 2**32)] = fixed(8192 * 8192)
    """A picture that declares more pixels than this is skipped and counted, not decoded: one of 8192 x 8192 takes up to
    1 GB and 7 s in each worker, though its file may have 100 KB.
    """
    tokens_per_pack: Annotated[int, Range(1, 2**24)] = fixed(32768)
    """How many tokens a pack, the batch of one forward pass, holds at most: of conditions, prompts and targets."""
    max_tokens_per_sample: Annotated[int, Range(1, 2**24)] = fixed(16384)
    """A sample of more tokens than this is skipped and counted."""
    packs_per_step: Annotated[int, Range(1, 2**16)] = fixed(1)
    """Packs of one optimizer step, over all processes; a multiple of the number of processes. Packs that one process
    has to take after another have their gradients added up.
    """
    round_rows: Annotated[int, Range(0, 2**16)] = rounding(0)
    """BAGEL: round the number of rows of each expert in a pack up to a multiple of this, with rows that no loss and no
    attention sees; 0 is off. Packs of small pictures then come in few different sizes, which are those that tiles of
    matrix products, float8 and compiled kernels like best. Price: the arithmetic of those rows, up to a multiple twice.
    """
    lookahead: PositiveInt = fixed(64)
    """How many samples are looked at to find those that fill a pack best; more of them leave less of it empty."""
    workers: Annotated[int, Range(1, 1024)] = neutral(2)
    """Threads that decode and resize pictures, in each process."""
    prefetch: Annotated[int, Range(0, 1024)] = neutral(2)
    """Packs kept ready ahead of the step."""

    @property
    def has_instructions(self) -> bool:
        """Whether i2t learns from conversations."""
        return bool(self.instructions) and self.tasks.i2t > 0

    @property
    def needs_captions(self) -> bool:
        """Whether some task learns from captions of source."""
        return self.tasks.t2i > 0 or (self.tasks.i2t > 0 and not self.instructions)
