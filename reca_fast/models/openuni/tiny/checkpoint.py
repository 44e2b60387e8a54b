"""Writing a complete OpenUni checkpoint folder of a few megabytes, with the files and names of the public ones."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reca_fast.models.bagel.tiny.tokenizer import write_tokenizer
from reca_fast.models.files import NameTable
from reca_fast.models.files.folder import write_object
from reca_fast.models.openuni.config import ConnectorConfig, DCAEConfig, OpenUniConfig, SanaConfig, VitConfig
from reca_fast.models.openuni.dcae import DECODER_NAMES, ENCODER_NAMES, empty_half, encode
from reca_fast.models.openuni.folder import PREFIXES, SANA, TRAINED
from reca_fast.models.openuni.names import NETWORK_NAMES, VIT_NAMES
from reca_fast.models.openuni.network import OpenUni
from reca_fast.models.openuni.tokenizer import MARKERS
from reca_fast.models.openuni.vit import InternVit
from reca_fast.models.parts.qwen2_config import Qwen2Config

from .internvl import write_internvl

HEAD = "lmm.language_model.lm_head.weight"
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of the tiny checkpoint; the defaults are those of the recipe."""

    hidden_size: int = 64
    """Of the language model and the connector: a multiple of 64, for heads of the connector are that wide."""
    layers: int = 3
    vit_hidden_size: int = 48
    vit_side: int = 8
    """Patches along a side of a picture; four of them become one token."""
    queries: int = 16
    connector_layers: int = 2
    sana_heads: int = 4
    """Of 16 numbers each."""
    sana_layers: int = 3
    text_vocab: int = 400
    """Entries of the byte-level BPE without the special tokens."""

    def config(self) -> OpenUniConfig:
        """The sizes of the model."""
        width, sana = self.hidden_size, 16 * self.sana_heads
        return OpenUniConfig(
            llm=Qwen2Config(
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=self.layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                vocab_size=math.ceil((self.text_vocab + len(MARKERS) + 1) / 8) * 8,
            ),
            vit=VitConfig(
                hidden_size=self.vit_hidden_size,
                intermediate_size=2 * self.vit_hidden_size,
                num_hidden_layers=2,
                num_attention_heads=4,
                image_size=self.vit_side * 8,
                patch_size=8,
            ),
            connector=ConnectorConfig(
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=self.connector_layers,
                num_attention_heads=width // 64,
            ),
            sana=SanaConfig(
                num_attention_heads=self.sana_heads,
                attention_head_dim=16,
                num_layers=self.sana_layers,
                num_cross_attention_heads=2,
                cross_attention_head_dim=sana // 2,
                cross_attention_dim=sana,
                caption_channels=48,
                in_channels=8,
                out_channels=8,
                sample_size=8,
            ),
            vae=DCAEConfig(
                latent_channels=8,
                attention_head_dim=8,
                encoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"),
                decoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"),
                encoder_block_out_channels=(8, 16, 32, 32),
                decoder_block_out_channels=(8, 16, 32, 32),
                encoder_layers_per_block=(1, 1, 1, 1),
                decoder_layers_per_block=(1, 1, 1, 1),
                encoder_qkv_multiscales=((), (), (), (5,)),
                decoder_qkv_multiscales=((), (), (), (5,)),
                scaling_factor=1.0,
            ),
            num_queries=self.queries,
        )


def write_tiny_openuni(folder: Path) -> TinyConfig:
    """The checkpoint of the recipe tiny-openuni."""
    return write_tiny_checkpoint(folder)


def write_tiny_checkpoint(
    folder: str | Path,
    *,
    seed: int = 0,
    stage: Literal[1, 2] = 1,
    native: bool = False,
    suffix: str = ".pth",
    **sizes: Any,
) -> TinyConfig:
    """Write a checkpoint folder. The same arguments give the same numbers.

    Args:
        folder: made if it is not there; files of the same names are replaced.
        seed: of the random weights.
        stage: whose file of weights is written: the first trains no SANA, which then stands beside it alone.
        native: write InternVL3 as transformers has it; otherwise as its remote code has it.
        suffix: of the file of weights, .pth or .safetensors.
        sizes: fields of `TinyConfig` that differ from its defaults.

    Returns:
        The sizes.
    """
    tiny, folder = TinyConfig(**sizes), Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config, weights = _weights(tiny.config())
    paths = {name: folder / name for name in ("internvl3", "sana/transformer", "vae")}
    for path in paths.values():
        path.mkdir(parents=True, exist_ok=True)
    own = {key: tensor for key, tensor in weights.items() if key.startswith(TRAINED)}
    sana = {key: tensor for key, tensor in weights.items() if key.startswith(PREFIXES[SANA])}
    own |= sana if stage == 2 else {}
    path = folder / f"openuni_tiny{suffix}"
    if suffix == ".safetensors":
        save_file(own, path)
    else:
        torch.save(own, path)
    write_internvl(paths["internvl3"], config, weights, native=native)
    write_tokenizer(paths["internvl3"], tiny.text_vocab, MARKERS)
    transformer = {"_class_name": "SanaTransformer2DModel", **asdict(config.sana)}
    write_object(paths["sana/transformer"] / "config.json", transformer)
    _save(paths["sana/transformer"] / "diffusion_pytorch_model.safetensors", weights, "transformer.")
    write_object(paths["vae"] / "config.json", {"_class_name": "AutoencoderDC", **asdict(config.vae)})
    _save(paths["vae"] / "diffusion_pytorch_model.safetensors", weights, "vae.")
    return tiny


def _save(path: Path, weights: Weights, prefix: str) -> None:
    save_file({key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}, path)


def _weights(config: OpenUniConfig) -> tuple[OpenUniConfig, Weights]:
    """Every tensor in fp32 under its public key, and the sizes with the scale at which latents have variance 1."""
    encoder, decoder = (empty_half(config.vae, half) for half in ("encoder", "decoder"))
    parts: list[tuple[nn.Module, NameTable]] = [
        (OpenUni(config), NETWORK_NAMES),
        (InternVit(config), VIT_NAMES),
        (encoder, ENCODER_NAMES),
        (decoder, DECODER_NAMES),
    ]
    weights: Weights = {}
    for module, names in parts:
        module.to_empty(device="cpu")
        for name, parameter in module.named_parameters():
            begin(name, parameter.data)
            weights[names.key(name)] = parameter.detach().view(names.stored_shape(name, parameter.shape)).clone()
    weights[HEAD] = 0.02 * torch.randn(config.llm.vocab_size, config.llm.hidden_size)
    pictures = torch.randint(256, (8, 3, 64, 64)).float() / 127.5 - 1
    smooth = nn.functional.avg_pool2d(pictures, 9, 1, 4)
    with torch.no_grad():
        spread = torch.stack([encode(encoder, config.vae, each, torch.float32) for each in smooth]).std().item()
    vae = DCAEConfig(**{**asdict(config.vae), "scaling_factor": round(1 / spread, 4)})
    return OpenUniConfig(**{**vars(config), "vae": vae}), weights


def begin(name: str, tensor: Tensor) -> None:
    """Give a parameter of this name the numbers that training begins with."""
    if name.endswith("bias") or name == "sana.proj_out.weight":
        tensor.zero_()  # the velocity begins at zero
    elif "norm" in name or name.endswith(("mlp1.0.weight", "ls1", "ls2")):
        tensor.fill_(1.0)
    elif name.endswith(("scale_shift_table", "embedding")) or name == "meta_queries":
        tensor.normal_(std=tensor.shape[-1] ** -0.5)
    elif name.startswith("embed_tokens"):
        tensor.normal_()
    else:
        tensor.normal_(std=tensor[0].numel() ** -0.5)
