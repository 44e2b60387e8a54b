"""Every setting of a run, as typed dataclasses. YAML recipes fill them, the command line overrides them.

Each setting is declared with what a change of it means for a run that is resumed: `fixed`, `free`, `rounding` or
`neutral`, the four functions below. Its type says which values it may have (`schema.py` has ranges of numbers). What
several settings allow together stands in `config_rules.py`.

Importing this module must stay cheap (no torch): `reca-fast --help` imports it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from reca_fast.schema import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Range,
)

T = TypeVar("T")

Attention = Literal["auto", "torch", "flash_attn_3", "flash_attn_4", "flash_attn", "xformers", "sdpa", "eager"]
Precision = Literal["fp32", "bf16"]
Kernels = Literal["auto", "triton", "reference"]
HOME = "~ is the home folder"
Place = Annotated[str, HOME]
"""A path, glob or hub id."""
Pixels = Annotated[int, Range(1, 2**16)]
Seed = Annotated[int, Range(0, 2**62)]
Decay = Annotated[float, Range(at_least=0, below=1)]
"""Share of an average that is kept in every step."""
GuidanceScale = Annotated[float, Range(1, 1000)]
GuidanceRenorm = Literal["global", "channel", "text_channel"]
Resume = Literal["fixed", "free", "rounding", "neutral"]


def fixed(default: T, by: Literal["value", "content"] = "value") -> T:
    """A setting that a run keeps for its life: resuming with another one is refused by name.

    Args:
        by: value compares what was written; content compares what the path leads to, so a folder may move.
    """
    return field(default=default, metadata={"resume": "fixed", "by": by})


def free(default: T) -> T:
    """A setting that may change on resume: from there on it takes effect as it does in a fresh run."""
    return field(default=default, metadata={"resume": "free"})


def rounding(default: T) -> T:
    """A setting that chooses how the same numbers are computed: a change on resume shows in their last bits only."""
    return field(default=default, metadata={"resume": "rounding"})


def neutral(default: T) -> T:
    """A setting without effect on the numbers: a run that is resumed with another one goes on bit for bit."""
    return field(default=default, metadata={"resume": "neutral"})


class Setting(NamedTuple):
    """One setting of a run."""

    name: str  # dotted, as on the command line
    resume: Resume
    by: str  # what of a fixed one is compared: its value, or the content that it leads to


def settings(config: Any, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a configuration and of those nested in it.

    Raises:
        TypeError: a setting does not say what its change means on resume.
    """
    for entry in fields(config):
        name, value = f"{prefix}{entry.name}", getattr(config, entry.name)
        if is_dataclass(value):
            yield from settings(value, f"{name}.")
        elif "resume" not in entry.metadata:
            raise TypeError(f"{name} is declared neither fixed, free, rounding nor neutral")
        else:
            yield Setting(name, entry.metadata["resume"], entry.metadata.get("by", "value"))


@dataclass
class ModelConfig:
    """Which checkpoint is post-trained and what of it moves."""

    path: Place = fixed("", by="content")
    """Checkpoint folder: ema.safetensors, ae.safetensors, llm_config.json, vit_config.json and the tokenizer's
    files.
    """
    weights: Place = fixed("auto", by="content")
    """Which file of the folder holds the weights: its name, a path of its own, or auto: ema.safetensors,
    model.safetensors or model_bf16.safetensors, of which only one may be there.
    """
    attention: Attention = rounding("auto")
    """Attention backend; auto takes the fastest that this machine can run (`reca-fast doctor` says which and why)."""
    kernels: Kernels = rounding("auto")
    """Fused operations as Triton kernels or as plain torch. auto takes Triton on a GPU, unless the environment variable
    RECA_FAST_KERNELS says otherwise; triton where it cannot run is an error.
    """
    precision: Precision = fixed("bf16")
    """Arithmetic of the forward and backward pass. The trained weights themselves are fp32 in either case."""
    freeze_und: bool = fixed(True)
    """Keep the understanding side as it is and train the generation side alone, as RECA does. Must be false when
    loss.i2t > 0.
    """
    recompute: bool = neutral(False)
    """Run every layer again in the backward pass instead of keeping its activations: less memory, a third more work."""
    compile: bool = rounding(False)
    """Compile every decoder layer with torch.compile (fullgraph, dynamic shapes)."""


@dataclass
class ResizeConfig:
    """Side limits of one picture, in pixels; both sides become multiples of the stride, the aspect ratio is kept."""

    max_size: Pixels = fixed(224)
    """Longest side."""
    min_size: Pixels = fixed(224)
    """Shortest side, as far as the longest one allows it."""
    stride: Pixels = fixed(14)
    """Both sides become multiples of this."""
    max_pixels: Annotated[int, Range(1, 2**32)] = fixed(14 * 14 * 9 * 1024)
    """Area above which the picture is shrunk further."""


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
    or hub id).
    """
    split: str = fixed("train")
    """Split of a Hugging Face dataset."""
    image_column: str = fixed("image")
    """Column with the picture (parquet, Hugging Face)."""
    caption_column: str = fixed("caption")
    """Column with the caption (parquet, Hugging Face, a folder's metadata file); folders and tars take the .txt,
    .caption or .json beside the picture.
    """
    tasks: TaskWeights = field(default_factory=TaskWeights)
    seed: Seed = fixed(42)
    """Seed of the order of the pictures, of the choice of templates and captions, and of text_dropout."""
    shuffle: bool = fixed(True)
    """Take the pictures in another order in every epoch; false takes them in the order of the source."""
    text_dropout: Probability = fixed(0.1)
    """Probability that a sample is trained without its prompt. Guidance compares with and without, so it needs both."""
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
    lookahead: PositiveInt = fixed(64)
    """How many samples are looked at to find those that fill a pack best; more of them leave less of it empty."""
    workers: Annotated[int, Range(1, 1024)] = neutral(2)
    """Threads that decode and resize pictures, in each process."""
    prefetch: Annotated[int, Range(0, 1024)] = neutral(2)
    """Packs kept ready ahead of the step."""


@dataclass
class LossWeights:
    """Weights of the loss L = reca * L_reca + t2i * L_t2i + i2t * L_i2t; a term of weight 0 is not computed."""

    reca: NonNegativeFloat = free(1.0)
    """Drawing the picture again from what the understanding encoder sees of it (flow matching)."""
    t2i: NonNegativeFloat = free(0.0)
    """Drawing captioned pictures from their captions (flow matching)."""
    i2t: NonNegativeFloat = free(0.0)
    """Saying the captions of captioned pictures (cross-entropy); needs model.freeze_und=false."""


@dataclass
class OptimConfig:
    """AdamW with the authors' settings for BAGEL."""

    lr: NonNegativeFloat = free(4e-5)
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = fixed((0.9, 0.95))
    """Decay of AdamW's running means of the gradient and of its square."""
    eps: PositiveFloat = fixed(1e-15)
    """Added to the root of the mean square that an update is divided by."""
    weight_decay: NonNegativeFloat = fixed(0.0)
    """Decoupled weight decay, of matrices only: biases, norms and embeddings have none."""
    warmup_steps: NonNegativeInt = free(1000)
    """Steps in which the learning rate rises evenly from 0, which the first of them has, to its peak."""
    schedule: Literal["constant", "cosine"] = free("constant")
    """What follows the warm-up; cosine falls to min_lr_ratio of the peak in the last step."""
    min_lr_ratio: Fraction = free(0.1)
    """Where the cosine ends, as a share of the peak learning rate; a constant schedule does not use it."""
    max_grad_norm: NonNegativeFloat = free(1.0)
    """Global gradient norm above which gradients are scaled down; 0 switches clipping off."""
    max_skipped_steps: NonNegativeInt = neutral(5)
    """Steps one after another that may be skipped because a loss or the gradient norm is inf or NaN. A skipped step
    changes nothing and is named in the next line of metrics; one more than this ends the run.
    """
    ema_decay: Decay = fixed(0.0)
    """Share of a moving average of the trained weights that is kept in every step; 0 is off. With 0.9999 it still is
    90 % the weights of the start after 1000 steps. `export --weights average` takes it.
    """


@dataclass
class ParallelConfig:
    """How processes started by torchrun share the model (FSDP2)."""

    replicate: PositiveInt = rounding(1)
    """How many times the model is held. With 1, all processes share one; with more, each group of processes shares its
    own and the gradients are averaged between the groups (HSDP).
    """


@dataclass
class SamplingConfig:
    """How pictures are drawn: Euler steps from noise to data with classifier-free guidance."""

    steps: Annotated[int, Range(1, 10_000)] = neutral(49)
    """How often the model is evaluated for a picture. The authors count the points of the time grid instead, which are
    one more: 49 here is their num_timesteps of 50.
    """
    timestep_shift: Annotated[float, Range(above=0, at_most=1000)] = neutral(3.0)
    """How far the steps are moved towards the noisy times; 1 spaces them evenly."""
    guidance: GuidanceScale = neutral(1.0)
    """How far each step is led away from what would be drawn without the prompt, the authors' cfg_text_scale. 1 is off
    and halves the cost; `generate` uses 4 unless told otherwise.
    """
    image_guidance: GuidanceScale = neutral(1.0)
    """How far each step is led away from what would be drawn without the condition, the authors' cfg_img_scale; 1 is
    off. It comes after `guidance`, which has to be above 1 as well.
    """
    guidance_interval: tuple[Fraction, Fraction] = neutral((0.0, 1.0))
    """Guidance acts at times t with first < t <= second, where 1 is noise and 0 the picture; steps at other times are
    unguided, and cheaper.
    """
    guidance_renorm: GuidanceRenorm = neutral("global")
    """Guided steps grow too long and are scaled back to their unguided length: the whole picture's at once (global),
    every token's (channel), or every token's after `guidance` and before `image_guidance` (text_channel).
    """
    guidance_renorm_min: Fraction = neutral(0.0)
    """The smallest factor of that scaling; 1 switches it off."""
    seed: Seed = neutral(0)
    """Seed of the noise that drawing starts from; picture i of a call has seed + i."""


_AUTHORS: dict[str, Any] = {
    "steps": 49,  # num_timesteps 50
    "timestep_shift": 3.0,
    "guidance": 4.0,
    "image_guidance": 1.0,
    "guidance_interval": [0.0, 1.0],
    "guidance_renorm": "global",
    "guidance_renorm_min": 0.0,
}
PRESETS: dict[str, dict[str, Any]] = {
    "geneval": _AUTHORS,
    "dpg": _AUTHORS | {"guidance": 3.0},
    "wise": _AUTHORS | {"guidance_interval": [0.4, 1.0]},
    "app": _AUTHORS | {"guidance_interval": [0.4, 1.0], "image_guidance": 1.5},
    "notebook": _AUTHORS | {"guidance_interval": [0.4, 1.0], "guidance_renorm_min": 1.0},
    "notebook-reconstruct": _AUTHORS
    | {"image_guidance": 2.0, "guidance_renorm": "text_channel", "guidance_renorm_min": 1.0},
}
"""Name of an authors' script, app or notebook (RECA's) -> the fields of `SamplingConfig` as it sets them."""


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
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
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
