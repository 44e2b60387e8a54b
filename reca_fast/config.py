"""Every setting of a run, as typed dataclasses. YAML recipes fill them, the command line overrides them.

Each setting is declared with what a change of it means for a run that is resumed: `fixed`, `free`, `rounding` or
`neutral`, the four functions below, and its type says which numbers it may be (`reca_fast.schema.check_ranges`).

Importing this module must stay cheap (no torch): `reca-fast --help` imports it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from reca_fast.errors import UserError
from reca_fast.schema import Range, check_ranges

T = TypeVar("T")

Attention = Literal["auto", "torch", "flash_attn_3", "flash_attn_4", "flash_attn", "xformers", "sdpa", "eager"]
Precision = Literal["fp32", "bf16"]
Kernels = Literal["auto", "triton", "reference"]
HOME = "~ is the home folder"
Place = Annotated[str, HOME]
"""A path, glob or hub id."""
Steps = Annotated[int, Range(at_least=1, at_most=10**9)]
StepsOrNone = Annotated[int, Range(at_least=0, at_most=10**9)]
Few = Annotated[int, Range(at_least=1, at_most=2**16)]
Pixels = Annotated[int, Range(at_least=1, at_most=2**16)]
Seed = Annotated[int, Range(at_least=0, at_most=2**62)]
Weight = Annotated[float, Range(at_least=0, at_most=1e9)]
Magnitude = Annotated[float, Range(at_least=0, at_most=1e9)]
Decay = Annotated[float, Range(at_least=0, below=1)]
GuidanceScale = Annotated[float, Range(at_least=1, at_most=1000)]
Fraction = Annotated[float, Range(at_least=0, at_most=1)]
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
    """Arithmetic of the forward and backward pass; trained weights keep an fp32 master copy in both."""
    freeze_und: bool = fixed(True)
    """Train the generation expert alone (RECA's setting). Must be false when loss.i2t > 0."""
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
    max_pixels: Annotated[int, Range(at_least=1, at_most=2**32)] = fixed(14 * 14 * 9 * 1024)
    """Area above which the picture is shrunk further."""


@dataclass
class TaskWeights:
    """How often a sample is drawn for each task; they need not add up to 1. t2i and i2t need captions."""

    reca: Weight = fixed(1.0)
    """Reconstruct the picture from its own understanding embedding."""
    t2i: Weight = fixed(0.0)
    """Draw the picture from its caption."""
    i2t: Weight = fixed(0.0)
    """Caption the picture."""


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
    """Seed of the order of the data, of the templates and of the condition dropout."""
    shuffle: bool = fixed(True)
    """Shuffle anew in every epoch."""
    text_dropout: Annotated[float, Range(at_least=0, at_most=1)] = fixed(0.1)
    """Probability that a sample's prompt is left out (classifier-free guidance needs it)."""
    condition_resize: ResizeConfig = field(default_factory=lambda: ResizeConfig(224, 224, 14))
    """The low-resolution picture that the understanding encoder sees."""
    target_resize: ResizeConfig = field(default_factory=lambda: ResizeConfig(1024, 512, 16))
    """The picture to be reconstructed."""
    blur_sigma: Annotated[float, Range(at_least=0, at_most=1000)] = fixed(0.0)
    """Gaussian blur of the understanding picture, in its own pixels; 0 is off."""
    resize: Literal["fast", "exact"] = fixed("fast")
    """fast: torch's uint8 antialiased bicubic (within two grey levels, five where a photograph is turned); exact:
    Pillow's, the authors' bits.
    """
    orientation: Literal["apply", "ignore"] = fixed("apply")
    """apply: turn pictures as their EXIF orientation says; ignore: take them as their pixels lie, like the authors."""
    max_image_pixels: Annotated[int, Range(at_least=1, at_most=2**32)] = fixed(8192 * 8192)
    """A picture that declares more pixels than this is skipped and counted, not decoded: one of 8192 x 8192 takes up to
    1 GB and 7 s in each worker, though its file may have 100 KB.
    """
    tokens_per_pack: Annotated[int, Range(at_least=1, at_most=2**24)] = fixed(32768)
    """Token budget of one packed batch, all streams counted."""
    max_tokens_per_sample: Annotated[int, Range(at_least=1, at_most=2**24)] = fixed(16384)
    """A longer sample is skipped and counted."""
    packs_per_step: Few = fixed(1)
    """Packs in one optimizer step over all processes; a multiple of the number of processes. The rest is
    accumulated.
    """
    lookahead: Few = fixed(64)
    """How many planned samples wait for a pack in which they fit; more waste fewer tokens."""
    workers: Annotated[int, Range(at_least=1, at_most=1024)] = neutral(2)
    """Threads that decode and resize."""
    prefetch: Annotated[int, Range(at_least=0, at_most=1024)] = neutral(2)
    """Packs kept ready ahead of the step."""


@dataclass
class LossWeights:
    """The lambdas of L = reca * L_reca + t2i * L_t2i + i2t * L_i2t; a term of weight 0 is not computed."""

    reca: Weight = free(1.0)
    """Reconstruction of the picture from its own understanding embedding (flow matching)."""
    t2i: Weight = free(0.0)
    """Text to image on captioned pictures (flow matching)."""
    i2t: Weight = free(0.0)
    """Image to text on captioned pictures (cross-entropy); needs model.freeze_und=false."""


@dataclass
class OptimConfig:
    """AdamW with the authors' settings for BAGEL."""

    lr: Magnitude = free(4e-5)
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = fixed((0.9, 0.95))
    """Decay of the first and second moments."""
    eps: Annotated[float, Range(above=0, at_most=1e9)] = fixed(1e-15)
    """Added to the root of the second moment."""
    weight_decay: Magnitude = fixed(0.0)
    """Decoupled weight decay, of matrices only: biases, norms and embeddings have none."""
    warmup_steps: StepsOrNone = free(1000)
    """Linear warm-up; the first update has learning rate 0, as the authors' schedule does."""
    schedule: Literal["constant", "cosine"] = free("constant")
    """What follows the warm-up; cosine falls to min_lr_ratio of the peak in the last step."""
    min_lr_ratio: Fraction = free(0.1)
    """Where the cosine ends, as a share of the peak learning rate; a constant schedule does not use it."""
    max_grad_norm: Magnitude = free(1.0)
    """Global gradient norm above which gradients are scaled down; 0 switches clipping off."""
    max_skipped_steps: StepsOrNone = neutral(5)
    """Steps one after another that may be skipped because a loss or the gradient norm is inf or NaN. A skipped step
    changes nothing and is named in the next line of metrics; one more than this ends the run.
    """
    ema_decay: Decay = fixed(0.0)
    """Exponential moving average of the trained weights; 0 is off (with 0.9999 and 1000 steps it keeps 90 % of the
    start).
    """


@dataclass
class ParallelConfig:
    """How processes started by torchrun share the model (FSDP2)."""

    replicate: Few = rounding(1)
    """Number of replicas; more than 1 gives HSDP: sharded inside a replica, averaged between them."""


@dataclass
class SamplingConfig:
    """How pictures are drawn: Euler steps from noise to data with classifier-free guidance."""

    steps: Annotated[int, Range(at_least=1, at_most=10_000)] = neutral(49)
    """How often the model is evaluated for a picture. The authors count the points of the time grid instead, which are
    one more: 49 here is their num_timesteps of 50.
    """
    timestep_shift: Annotated[float, Range(above=0, at_most=1000)] = neutral(3.0)
    """Shift of the time grid towards noise."""
    guidance: GuidanceScale = neutral(1.0)
    """Guidance away from the condition without its prompt, the authors' cfg_text_scale; 1 switches it off and halves
    the cost (generate starts from 4).
    """
    image_guidance: GuidanceScale = neutral(1.0)
    """Guidance away from the condition without its picture, the authors' cfg_img_scale; 1 switches it off. It follows
    `guidance` and needs it above 1.
    """
    guidance_interval: tuple[Fraction, Fraction] = neutral((0.0, 1.0))
    """Guidance acts at times t with first < t <= second, 1 being noise; at all others the unguided pass runs alone."""
    guidance_renorm: GuidanceRenorm = neutral("global")
    """What is scaled back to its unguided length: the whole picture, every token (channel), or every token after
    `guidance` and before `image_guidance` (text_channel).
    """
    guidance_renorm_min: Fraction = neutral(0.0)
    """The least factor of that scaling, from 0 to 1; 1 switches it off."""
    seed: Seed = neutral(0)
    """Seed of the starting noise; picture i of a call has seed + i, whatever the batch."""

    def check(self) -> None:
        """Refuse settings that draw nothing.

        Raises:
            UserError: naming the option and what it must be.
        """
        check_ranges(self, "sampling.")
        first, second = self.guidance_interval
        if first > second:
            raise UserError(f"sampling.guidance_interval=[{first}, {second}]: the second time must be the later one.")
        if self.image_guidance > 1 and self.guidance == 1:
            raise UserError(
                f"sampling.image_guidance={self.image_guidance} acts only where sampling.guidance does: set "
                "--sampling.guidance above 1 as well."
            )


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
    """RECA post-training: pictures in, checkpoint out."""

    out: Place = neutral("runs/reca")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard events, sample grids."""
    steps: Steps = free(1000)
    """Optimizer steps in all."""
    seed: Seed = fixed(4396)
    """Seed of noise, timesteps and sample grids."""
    device: str = rounding("auto")
    """auto, cpu or cuda."""
    deterministic: bool = rounding(False)
    """Take only algorithms that add in a fixed order, so that two runs on a GPU agree bit for bit as they do on a CPU.
    Slower, above all in attention's backward pass.
    """
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    save_every: StepsOrNone = neutral(250)
    """Steps between checkpoints; the last step is always saved."""
    keep: Steps = neutral(2)
    """Checkpoints kept; older ones are removed after a newer one is whole."""
    resume: bool = neutral(True)
    """Go on from the newest whole checkpoint in the run folder, if there is one."""
    verify_checkpoint: bool = neutral(True)
    """Compare a checkpoint with its checksums before going on from it: it is read once more, at 1 GB/s or faster."""
    log_every: Steps = neutral(1)
    """Steps between lines of metrics."""
    sample_every: StepsOrNone = neutral(0)
    """Steps between grids of reconstructed pictures; 0 is off."""
    sample_count: Annotated[int, Range(at_least=1, at_most=1024)] = neutral(4)
    """Pictures in a grid."""
    profile: bool = neutral(False)
    """Write a torch profiler trace of steps 3 to 5 to the run folder."""
