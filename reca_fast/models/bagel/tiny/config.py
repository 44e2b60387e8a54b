"""Sizes of the tiny checkpoint, and the JSON files that state them."""

import math
from dataclasses import dataclass
from typing import Any

from reca_fast.models.bagel.tokenizer import MARKERS
from reca_fast.models.parts.kl_vae_config import KLVAEConfig

DEMO_VAE = KLVAEConfig(
    ch=32,
    ch_mult=(1, 1, 1),
    num_res_blocks=1,
    z_channels=4,
    norm_groups=8,  # with 32, every channel is its own group: its mean, that is the picture's colour, would be lost
    scale_factor=0.7603,
    shift_factor=0.0138,
)
"""Sizes of vae.safetensors beside this file; scale and shift are printed by reca_fast.models.bagel.tiny.train_vae."""


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of the tiny checkpoint; the defaults are those that bench/ trains.

    Its pictures have 64 x 64 pixels, that is 8 x 8 latent tokens; the ViT sees them at 112 x 112, also as 8 x 8 tokens.
    Equal grids let a latent token find the ViT token of its place (see tiny_weights).
    """

    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    text_vocab: int = 512
    """Entries of the byte-level BPE without the five special tokens."""
    vit_hidden_size: int = 96
    vit_intermediate_size: int = 192
    vit_layers: int = 2
    """Layers that are built; vit_config.json states one more, because the public model never uses its last one."""
    vit_heads: int = 4
    vit_side: int = 8
    """Side of the ViT's position tables, in patches of 14 pixels."""
    latent_side: int = 16
    """Side of the latent position table, in latent tokens."""
    vae: KLVAEConfig = DEMO_VAE
    patch_size: int = 14
    latent_patch_size: int = 2
    timestep_shift: float = 1.0

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table, a multiple of 8: more than the tokenizer has ids, as in the public model."""
        return math.ceil((self.text_vocab + len(MARKERS) + 2) / 8) * 8

    def llm_config(self) -> dict[str, Any]:
        """Content of llm_config.json."""
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab_size,
            "rope_theta": 1_000_000.0,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "max_position_embeddings": 1024,
            "tie_word_embeddings": False,
            "qk_norm": True,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "layer_module": "Qwen2MoTDecoderLayer",
        }

    def vit_config(self) -> dict[str, Any]:
        """Content of vit_config.json."""
        return {
            "model_type": "siglip_vision_model",
            "hidden_size": self.vit_hidden_size,
            "intermediate_size": self.vit_intermediate_size,
            "num_hidden_layers": self.vit_layers + 1,
            "num_attention_heads": self.vit_heads,
            "image_size": self.vit_side * self.patch_size,
            "patch_size": self.patch_size,
            "num_channels": 3,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "attention_dropout": 0.0,
        }

    def glue_config(self) -> dict[str, Any]:
        """The `bagel_config` part of config.json: what the authors' code takes from its command line."""
        return {
            "latent_patch_size": self.latent_patch_size,
            "max_latent_size": self.latent_side,
            "vit_max_num_patch_per_side": self.vit_side,
            "connector_act": "gelu_pytorch_tanh",
            "interpolate_pos": False,
            "timestep_shift": self.timestep_shift,
            "vit_select_layer": -2,
        }
