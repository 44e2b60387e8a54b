"""What is minimised, and how the weights are changed."""

from dataclasses import dataclass
from typing import Literal

from reca_fast.schema import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat

from .declare import Decay, fixed, free, neutral


@dataclass
class LossWeights:
    """Weights of the loss L = reca * L_reca + t2i * L_t2i + i2t * L_i2t; a term of weight 0 is not computed."""

    reca: NonNegativeFloat = free(1.0)
    """Drawing the picture again from what the understanding encoder sees of it (flow matching)."""
    t2i: NonNegativeFloat = free(0.0)
    """Drawing captioned pictures from their captions (flow matching)."""
    i2t: NonNegativeFloat = free(0.0)
    """Saying the captions of captioned pictures (cross-entropy); needs model.freeze_und=false."""


Kind = Literal["adamw", "adamw8bit", "paged_adamw8bit", "adamw8bit_ao", "adamw4bit_ao", "adafactor", "muon"]


@dataclass
class OptimConfig:
    """How weights follow from gradients: AdamW with the authors' settings for BAGEL, unless told otherwise."""

    kind: Kind = fixed("adamw")
    """The optimizer, by what it keeps of every trained weight. adamw: two fp32 moments, 8 bytes; adamw8bit
    (bitsandbytes) and adamw8bit_ao (torchao): 2 bytes; adamw4bit_ao (torchao): 1 byte; adafactor: next to nothing, and
    no first moment; muon: 4 bytes, a momentum of matrices, whose updates are made orthogonal, while everything else is
    updated by adamw. paged_adamw8bit keeps the 2 bytes where the GPU's driver moves them to the host when they do not
    fit. Price: moments are rounded in every step; adafactor's updates are coarser and it ignores betas and eps; muon
    multiplies every matrix fifteen times with its own likes, and needs it whole on every process.
    """
    states: Literal["device", "host"] = neutral("device")
    """Where those bytes lie. host: in host memory; those of a block come to the GPU for its update and go back, twice
    their size over PCIe in every step. Not with paged_adamw8bit, which does that by itself.
    """

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
