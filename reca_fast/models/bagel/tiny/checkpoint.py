"""Writing a complete BAGEL checkpoint folder of a few megabytes, with the files and names of the public one."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from reca_fast.models.files.folder import write_object
from reca_fast.models.parts.kl_vae import KLVAE, save_kl_vae

from .config import TinyConfig
from .tokenizer import write_tokenizer
from .weights import tiny_weights

VAE_FILE = Path(__file__).with_name("vae.safetensors")
"""A small VAE that was trained on photographs, by `python -m reca_fast.models.bagel.tiny.train_vae`."""


def write_tiny_bagel(folder: Path) -> None:
    """Write the checkpoint folder that the recipe tiny-bagel trains: the usual one, with half of its layers."""
    write_tiny_checkpoint(folder, vae_file=VAE_FILE, layers=2)


def write_tiny_checkpoint(
    folder: str | Path, *, seed: int = 0, vae_file: str | Path | None = None, **sizes: Any
) -> TinyConfig:
    """Write a checkpoint folder. The same arguments give the same bytes.

    Args:
        folder: made if it is not there; files of the same names are replaced.
        seed: of the random weights.
        vae_file: a VAE to copy, VAE_FILE for one that was trained on photographs. Without one the VAE has random
            weights: enough for tests, but no picture can be recognised in its latents.
        sizes: fields of `TinyConfig` that differ from its defaults.

    Returns:
        The sizes.
    """
    config, folder = TinyConfig(**sizes), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_object(folder / "llm_config.json", config.llm_config())
    write_object(folder / "vit_config.json", config.vit_config())
    # The public config.json has neither part: a reader that misses them takes the public constants.
    glue = {"model_type": "bagel", "vae_config": config.vae.to_dict(), "bagel_config": config.glue_config()}
    write_object(folder / "config.json", glue)
    write_tokenizer(folder, config.text_vocab)
    save_file(tiny_weights(config, seed), folder / "ema.safetensors")
    if vae_file is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            save_kl_vae(KLVAE(config.vae), folder / "ae.safetensors")
    else:
        shutil.copyfile(vae_file, folder / "ae.safetensors")
    return config
