"""Every setting of a run, as typed dataclasses. YAML recipes fill them, the command line overrides them.

Importing this module must stay cheap (no torch): `reca-fast --help` imports it.
"""

from dataclasses import dataclass, field
from typing import Literal

Attention = Literal["auto", "torch", "flash_attn", "xformers", "sdpa", "eager"]
Precision = Literal["fp32", "bf16"]


@dataclass
class ModelConfig:
    """Which checkpoint is post-trained and what of it moves."""

    path: str = ""
    """Checkpoint folder: ema.safetensors, ae.safetensors, llm_config.json, vit_config.json and the tokenizer's files."""
    attention: Attention = "auto"
    """Attention backend; auto takes the fastest that this machine can run (`reca-fast doctor` says which and why)."""
    precision: Precision = "bf16"
    """Arithmetic of the forward and backward pass; trained weights keep an fp32 master copy in both."""
    freeze_und: bool = True
    """Train the generation expert alone (RECA's setting). Must be false when loss.i2t > 0."""
    compile: bool = False
    """Compile every decoder layer with torch.compile (fullgraph, dynamic shapes)."""


@dataclass
class ResizeConfig:
    """Side limits of one picture, in pixels; both sides become multiples of the stride, the aspect ratio is kept."""

    max_size: int
    min_size: int
    stride: int
    max_pixels: int = 14 * 14 * 9 * 1024


@dataclass
class TaskWeights:
    """How often a sample is drawn for each task; they need not add up to 1. t2i and i2t need captions."""

    reca: float = 1.0
    t2i: float = 0.0
    i2t: float = 0.0


@dataclass
class DataConfig:
    """Where pictures come from and how they become packed batches."""

    source: str = ""
    """A folder of pictures, tar shards (a file, a folder or a glob), parquet files, or a Hugging Face dataset (folder or hub id)."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    image_column: str = "image"
    """Column with the picture (parquet, Hugging Face)."""
    caption_column: str = "caption"
    """Column with the caption (parquet, Hugging Face); folders and tars take the .txt or .json beside the picture."""
    tasks: TaskWeights = field(default_factory=TaskWeights)
    seed: int = 42
    """Seed of the order of the data, of the templates and of the condition dropout."""
    shuffle: bool = True
    """Shuffle anew in every epoch."""
    text_dropout: float = 0.1
    """Probability that a sample's prompt is left out (classifier-free guidance needs it)."""
    vit_resize: ResizeConfig = field(default_factory=lambda: ResizeConfig(224, 224, 14))
    """The low-resolution picture that the understanding encoder sees."""
    vae_resize: ResizeConfig = field(default_factory=lambda: ResizeConfig(1024, 512, 16))
    """The picture to be reconstructed."""
    blur_sigma: float = 0.0
    """Gaussian blur of the understanding picture, in its own pixels; 0 is off."""
    resize: Literal["fast", "exact"] = "fast"
    """fast: torch's uint8 antialiased bicubic (within one grey level); exact: Pillow's, the authors' bits."""
    max_image_pixels: int = 178_956_970
    """A picture that declares more pixels than this is refused before it is decoded (decompression bomb)."""
    tokens_per_pack: int = 32768
    """Token budget of one packed batch, all streams counted."""
    max_tokens_per_sample: int = 16384
    """A longer sample is skipped and counted."""
    packs_per_step: int = 1
    """Packs in one optimizer step over all processes; a multiple of the number of processes. The rest is accumulated."""
    lookahead: int = 64
    """How many planned samples wait for a pack in which they fit; more waste fewer tokens."""
    workers: int = 2
    """Threads that decode and resize."""
    prefetch: int = 2
    """Packs kept ready ahead of the step."""
