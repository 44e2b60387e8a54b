"""Writing a complete Show-o checkpoint folder of a few megabytes, with the files and names of the public ones."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from reca_fast.models.files.folder import write_object
from reca_fast.models.parts.magvit import MAGVIT_FOLDER

from .config import TinyConfig
from .tokenizer import write_tokenizer
from .weights import language_model, tokenizer, tower


def write_tiny_checkpoint(folder: str | Path, *, seed: int = 0, **sizes: Any) -> TinyConfig:
    """Write a checkpoint folder. The same arguments give the same bytes.

    Args:
        folder: made if it is not there; files of the same names are replaced.
        seed: of the random weights.
        sizes: fields of `TinyConfig` that differ from its defaults; `clip=True` gives the variant that sees conditions
            through CLIP.

    Returns:
        The sizes.
    """
    config, folder = TinyConfig(**sizes), Path(folder)
    (folder / MAGVIT_FOLDER).mkdir(parents=True, exist_ok=True)
    write_object(folder / "config.json", config.config())
    save_file(language_model(config, seed), folder / "pytorch_model.safetensors")
    write_tokenizer(folder, config.text_vocab)
    write_object(folder / MAGVIT_FOLDER / "config.json", {"_class_name": "MAGVITv2"})
    save_file(tokenizer(config, seed), folder / MAGVIT_FOLDER / "pytorch_model.safetensors")
    if config.clip:
        (folder / "clip").mkdir(exist_ok=True)
        write_object(folder / "clip" / "config.json", config.clip_config())
        save_file(tower(config, seed), folder / "clip" / "model.safetensors")
    return config


def write_tiny_showo(folder: Path) -> None:
    """Write the checkpoint folder that the recipe tiny-showo trains, whose conditions are seen through CLIP."""
    write_tiny_checkpoint(folder, clip=True)


def write_tiny_showo_vq(folder: Path) -> None:
    """Write the checkpoint folder that the recipe tiny-showo-vq trains, whose conditions are codes."""
    write_tiny_checkpoint(folder)
