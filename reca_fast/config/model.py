"""The model: which checkpoint, and how it computes."""

from dataclasses import dataclass, field
from typing import Literal

from .auxiliary import AuxiliaryConfig
from .declare import Place, fixed, neutral, rounding

Attention = Literal["auto", "torch", "flash_attn_3", "flash_attn_4", "flash_attn", "xformers", "sdpa", "eager"]
Precision = Literal["fp32", "bf16"]
Kernels = Literal["auto", "triton", "reference"]
Condition = Literal["auto", "understanding", "generation"]


@dataclass
class ModelConfig:
    """Which checkpoint is post-trained and what of it moves."""

    path: Place = fixed("", by="content")
    """Checkpoint folder: ema.safetensors, ae.safetensors, llm_config.json, vit_config.json and the tokenizer's
    files.
    """
    name: str = neutral("")
    """The published model that a recipe is made for, such as BAGEL-7B-MoT: `reca-fast plan` takes its sizes where path
    is empty, and nothing else reads it. Where path is empty, the name of a tiny model, such as tiny-bagel, stands for
    its checkpoint, whose random weights are made at once.
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
    freeze: tuple[str, ...] = fixed(())
    """Parts that are left as they are beside what the model freezes itself, by the names that a checkpoint's index of
    parameters has, such as connector or sana.blocks.0; a name stands for all that begins with it and a dot.
    """
    condition: Condition = fixed("auto")
    """Whose embeddings of a picture are the condition: those of the understanding encoder (a ViT, SigLIP, CLIP), as
    RECA has it, or those of the generation encoder (a VAE, VQ codes), which say how a picture looks and not what it
    shows. auto takes what the checkpoint was made for. A model refuses what it does not have.
    """
    auxiliary: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
