"""The checkpoint folder of the tiny OpenUni: its sizes, and its files in the layout of the public models."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reca_fast.models.bagel.tiny.tokenizer import write_tokenizer
from reca_fast.models.files import NameTable
from reca_fast.models.files.folder import write_object
from reca_fast.models.openuni.config import ConnectorConfig, OpenUniConfig, SanaConfig, VitConfig
from reca_fast.models.openuni.dcae import DECODER_NAMES, ENCODER_NAMES
from reca_fast.models.openuni.names import NETWORK_NAMES, VIT_NAMES
from reca_fast.models.openuni.network import OpenUni
from reca_fast.models.openuni.tiny.checkpoint import HEAD, begin
from reca_fast.models.openuni.tiny.internvl import write_internvl
from reca_fast.models.openuni.tokenizer import MARKERS, OpenUniTokenizer, open_tokenizer
from reca_fast.models.parts.qwen2_config import Qwen2Config
from reca_fast.toy import SIDE

from .codec import Components, codec_config, decoder_half, encoder_half
from .lessons import SLOTS, texts_of_the_world
from .understanding import Understanding

TEXT_VOCABULARY = 1000
VOCABULARY = math.ceil((TEXT_VOCABULARY + len(MARKERS) + 1) / 8) * 8
CHANNELS = 48
"""Of the latents: 48 of 192 principal components keep 97.5 % of the variance of patches."""
SPREAD = 0.5
"""Standard deviation of scaled latents, beside noise of 1."""
DTYPE = torch.bfloat16
"""Of the files: half as large, and what is trained starts from rounded numbers."""
INTERNVL, SANA, VAE = "internvl3", "sana/transformer", "vae"


def toy_config() -> OpenUniConfig:
    """The sizes: 1.0 M parameters understand, 1.6 M draw. A query for each word of `lessons.form`."""
    width, drawing = 128, 128
    return OpenUniConfig(
        llm=Qwen2Config(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
        ),
        vit=VitConfig(
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=4,
        ),
        connector=ConnectorConfig(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1, num_attention_heads=width // 64
        ),
        sana=SanaConfig(
            num_attention_heads=drawing // 16,
            attention_head_dim=16,
            num_layers=5,
            num_cross_attention_heads=4,
            cross_attention_head_dim=drawing // 4,
            cross_attention_dim=drawing,
            caption_channels=64,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            sample_size=SIDE // 8,
        ),
        vae=codec_config(CHANNELS, 1.0),
        num_queries=SLOTS,
    )


def write_toy_tokenizer(folder: Path) -> OpenUniTokenizer:
    """Train the tokenizer, write it to the InternVL3 folder of a checkpoint folder, and read it from there."""
    inside = folder / INTERNVL
    inside.mkdir(parents=True, exist_ok=True)
    write_tokenizer(inside, TEXT_VOCABULARY, MARKERS, texts_of_the_world())
    return open_tokenizer(inside, VOCABULARY)


def write_checkpoint(folder: Path, understanding: Understanding, found: Components, seed: int) -> None:
    """Write what `write_toy_tokenizer` has not: a taught understanding, the codec, and a SANA that has learned nothing.

    Args:
        folder: of the checkpoint.
        found: of the pictures that will be drawn.
        seed: of SANA's weights.
    """
    vae = codec_config(CHANNELS, round(SPREAD / found.spread, 4))
    config = replace(understanding.config, vae=vae)
    weights = _weights(config, understanding, found, seed)
    own = {key: tensor for key, tensor in weights.items() if not key.startswith(("lmm.", "vae."))}
    for name in (SANA, VAE):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_internvl(folder / INTERNVL, config, weights, native=False)
    write_object(folder / SANA / "config.json", {"_class_name": "SanaTransformer2DModel", **asdict(config.sana)})
    write_object(folder / VAE / "config.json", {"_class_name": "AutoencoderDC", **asdict(config.vae)})
    codec = {key.removeprefix("vae."): tensor for key, tensor in weights.items() if key.startswith("vae.")}
    save_file(codec, folder / VAE / "diffusion_pytorch_model.safetensors")
    save_file(own, folder / "openuni_toy.safetensors")


def _weights(config: OpenUniConfig, taught: Understanding, found: Components, seed: int) -> dict[str, Tensor]:
    """Every tensor under its public key."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = OpenUni(config)
        for name, parameter in network.named_parameters():
            begin(name, parameter.data)
    understood = taught.state_dict()
    parts: list[tuple[Mapping[str, Tensor], NameTable]] = [
        ({name: understood.get(name, tensor) for name, tensor in network.state_dict().items()}, NETWORK_NAMES),
        (taught.vit.state_dict(), VIT_NAMES),
        (_state(encoder_half(config.vae, found)), ENCODER_NAMES),
        (_state(decoder_half(config.vae, found)), DECODER_NAMES),
    ]
    weights = {
        names.key(name): tensor.detach().view(names.stored_shape(name, tensor.shape)).to(DTYPE, copy=True)
        for state, names in parts
        for name, tensor in state.items()
    }
    return {**weights, HEAD: understood["head.weight"].to(DTYPE, copy=True)}


def _state(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters())
