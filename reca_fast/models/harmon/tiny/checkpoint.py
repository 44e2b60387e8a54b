"""Writing a complete Harmon checkpoint folder of a few megabytes, with the files and names of the public ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from reca_fast.models.bagel.tiny import VAE_FILE as TRAINED_VAE
from reca_fast.models.bagel.tiny.config import DEMO_VAE
from reca_fast.models.bagel.tiny.tokenizer import write_tokenizer
from reca_fast.models.files.folder import write_object
from reca_fast.models.parts.kl_vae import KLVAE, read_kl_vae
from reca_fast.models.parts.kl_vae_names import kl_vae_names

from ..config import HarmonConfig
from ..names import EMBEDDING, HEAD, VAE_PREFIX
from ..weights import HF_FILES, VAE_FILE
from .weights import tiny_weights


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of a tiny Harmon. It differs from the public ones in more than numbers: a token is a square of 2 x 2 latent
    cells, each of 4 pixels.
    """

    hidden_size: int = 96
    intermediate_size: int = 192
    layers: int = 2
    mar_width: int = 64
    mar_depth: int = 2
    denoiser_width: int = 128
    denoiser_depth: int = 2
    buffers: int = 8
    text_vocab: int = 512
    """Entries of the byte-level BPE without the five special tokens."""

    def values(self) -> dict[str, Any]:
        """Content of config.json."""
        both = {"embed_dim": self.mar_width, "depth": self.mar_depth, "num_heads": 2}
        return {
            "model_type": "harmon",
            "llm": {
                "model_type": "qwen2",
                "hidden_size": self.hidden_size,
                "intermediate_size": self.intermediate_size,
                "num_hidden_layers": self.layers,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": -(-(self.text_vocab + 5) // 8) * 8,
                "rope_theta": 1_000_000.0,
                "rms_norm_eps": 1e-6,
                "hidden_act": "silu",
                "tie_word_embeddings": True,
                "use_sliding_window": False,
            },
            "mar": {
                **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in both.items()},
                "img_size": 64,
                "vae_stride": DEMO_VAE.downsample,
                "patch_size": 2,
                "vae_embed_dim": DEMO_VAE.z_channels,
                "class_num": 10,
                "buffer_size": self.buffers,
                "diffloss_d": self.denoiser_depth,
                "diffloss_w": self.denoiser_width,
                "num_sampling_steps": "20",
                "diffusion_batch_mul": 4,
            },
            "vae": {
                "ch": DEMO_VAE.ch,
                "ch_mult": list(DEMO_VAE.ch_mult),
                "num_res_blocks": DEMO_VAE.num_res_blocks,
                "norm_num_groups": DEMO_VAE.norm_groups,
                "embed_dim": DEMO_VAE.z_channels,
            },
            "vae_scale": DEMO_VAE.scale_factor,
        }


def write_tiny_harmon(folder: Path) -> None:
    """Write the checkpoint folder that the recipe tiny-harmon trains."""
    write_tiny_checkpoint(folder)


def write_tiny_checkpoint(
    folder: str | Path,
    *,
    seed: int = 0,
    layout: Literal["authors", "transformers"] = "authors",
    head: bool = True,
    **sizes: Any,
) -> HarmonConfig:
    """Write a checkpoint folder. The same arguments give the same weights.

    Args:
        folder: made if it is not there; files of the same names are replaced.
        seed: of the random weights.
        layout: authors: harmon_tiny.pth and kl16.ckpt; transformers: one model.safetensors.
        head: hold the head beside the embedding, as the authors' files do, though it is the same tensor.
        sizes: fields of `TinyConfig` that differ from its defaults.

    Returns:
        The sizes.
    """
    tiny, folder = TinyConfig(**sizes), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = HarmonConfig.from_dict(tiny.values(), "the tiny checkpoint")
    write_object(folder / "config.json", tiny.values())
    write_tokenizer(folder, tiny.text_vocab)
    weights = tiny_weights(config, seed)
    if head:
        weights[HEAD] = weights[EMBEDDING].clone()
    vae = _trained_vae(config)
    if layout == "authors":
        torch.save(weights, folder / "harmon_tiny.pth")
        torch.save({"model": vae}, folder / VAE_FILE)
    else:
        save_file(weights | {VAE_PREFIX + key: tensor for key, tensor in vae.items()}, folder / HF_FILES[0])
    return config


def _trained_vae(config: HarmonConfig) -> dict[str, Tensor]:
    """The small VAE that was trained on photographs, in the form of Harmon's: with an attention in the encoder that
    adds nothing, and with convolutions behind the encoder and before the decoder that only shift the latents.
    """
    trained = read_kl_vae(TRAINED_VAE, DEMO_VAE).state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = KLVAE(config.vae)
    state = {name: tensor.clone() for name, tensor in vae.state_dict().items()} | trained
    z, shift = config.vae.z_channels, DEMO_VAE.shift_factor
    for name in state.keys() - trained.keys():
        if ".to_out.0." in name:
            state[name] = torch.zeros_like(state[name])
    state["quant_conv.weight"] = torch.eye(2 * z)[:, :, None, None]
    state["quant_conv.bias"] = torch.tensor([-shift] * z + [0.0] * z)
    state["post_quant_conv.weight"] = torch.eye(z)[:, :, None, None]
    state["post_quant_conv.bias"] = torch.full((z,), shift)
    names = kl_vae_names(config.vae)
    return {
        names.key(name): tensor.reshape(names.stored_shape(name, tensor.shape)).contiguous()
        for name, tensor in state.items()
    }
