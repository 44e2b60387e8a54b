"""A complete BAGEL checkpoint folder of a few megabytes, in the public layout, with random but usable weights.

Tests and the demo start from it. "Usable" means that the frozen understanding half lets the picture through: its ViT
measures low frequencies, its later layers only perturb. The generation half knows nothing yet.
"""

import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from reca_fast.data.prompts import templates

from .embeddings import TimestepEmbedder, sincos_table
from .tokenizer import MARKERS
from .vae import VAE, VAEConfig, save_vae

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of the tiny checkpoint; the defaults are the demo's (64x64 pictures, 64 latent tokens, 16 ViT tokens)."""

    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    text_vocab: int = 512
    """Entries of the byte-level BPE, before the five special tokens; the embedding table is rounded up to 8s."""
    vit_hidden_size: int = 96
    vit_intermediate_size: int = 192
    vit_layers: int = 2
    """Layers that exist; vit_config.json names one more, because the public model never uses its last one."""
    vit_heads: int = 4
    vit_side: int = 8
    """Side of the ViT's position tables, in patches of 14 pixels."""
    latent_side: int = 16
    """Side of the latent position table, in latent tokens."""
    vae: VAEConfig = field(
        default_factory=lambda: VAEConfig(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, z_channels=4, norm_groups=8)
    )
    patch_size: int = 14
    latent_patch_size: int = 2
    timestep_shift: float = 1.0

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table: more than the tokenizer has entries, as in the public checkpoint."""
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


def write_tiny_checkpoint(
    folder: str | Path, *, seed: int = 0, vae_file: str | Path | None = None, **sizes: Any
) -> TinyConfig:
    """Write the checkpoint folder and return its sizes; `sizes` override the fields of `TinyConfig`.

    The same arguments give the same bytes. Without `vae_file` the VAE is random too: fine for tests, blind otherwise.
    """
    config, folder = TinyConfig(**sizes), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "llm_config.json", config.llm_config())
    _write_json(folder / "vit_config.json", config.vit_config())
    # The public config.json has neither part: a reader that misses them takes the public constants.
    glue = {"model_type": "bagel", "vae_config": config.vae.to_dict(), "bagel_config": config.glue_config()}
    _write_json(folder / "config.json", glue)
    _write_tokenizer(folder, config)
    save_file(_weights(config, seed), folder / "ema.safetensors")
    if vae_file is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            save_vae(VAE(config.vae), folder / "ae.safetensors")
    else:
        shutil.copyfile(vae_file, folder / "ae.safetensors")
    return config


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path, config: TinyConfig) -> None:
    """Train a byte-level BPE on the prompt templates; write it as tokenizer.json and as Qwen's three older files."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    # Contractions, words with one leading mark, single digits, punctuation, white space: Qwen's pieces.
    pieces = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.text_vocab,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(templates(), trainer)
    special = [END_OF_TEXT, *MARKERS.values()]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {str(tokenizer.token_to_id(token)): {"content": token, **flags} for token in special}
    _write_json(folder / "vocab.json", dict(sorted(vocabulary.items(), key=lambda entry: entry[1])))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "add_prefix_space": False}
    none = {"bos_token": None, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT, "unk_token": None}
    _write_json(folder / "tokenizer_config.json", settings | none)


def _weights(config: TinyConfig, seed: int) -> dict[str, Tensor]:
    """Every tensor of ema.safetensors, fp32, under its public key."""
    draw = torch.Generator().manual_seed(seed)
    weights = _language_model(config, draw) | _vision(config, draw)
    width, latent = config.hidden_size, config.latent_patch_size**2 * config.vae.z_channels
    _linear(weights, "vae2llm", width, latent, draw)
    _linear(weights, "time_embedder.mlp.0", width, TimestepEmbedder.FEATURES, draw)
    _linear(weights, "time_embedder.mlp.2", width, width, draw)
    # Zero, as the authors start it: the first predicted velocity is 0 everywhere.
    weights["llm2vae.weight"], weights["llm2vae.bias"] = torch.zeros(latent, width), torch.zeros(latent)
    weights["latent_pos_embed.pos_embed"] = sincos_table(config.latent_side, width)
    weights["vit_pos_embed.pos_embed"] = sincos_table(config.vit_side, width)
    return weights


def _linear(
    into: dict[str, Tensor], name: str, rows: int, cols: int, draw: torch.Generator, *, gain: float = 1.0, bias=True
) -> None:
    """Add a linear layer that keeps the size of its input (times `gain`), with zero bias."""
    into[f"{name}.weight"] = torch.randn(rows, cols, generator=draw) * gain / math.sqrt(cols)
    if bias:
        into[f"{name}.bias"] = torch.zeros(rows)


def _language_model(config: TinyConfig, draw: torch.Generator) -> dict[str, Tensor]:
    """The understanding expert at random and the generation expert as its copy (how the authors initialise it)."""
    width, head = config.hidden_size, config.hidden_size // config.heads
    branch = 1 / math.sqrt(2 * config.layers)  # 2 branches a layer add up: together they double the residual stream
    und: dict[str, Tensor] = {}
    for i in range(config.layers):
        layer = f"language_model.model.layers.{i}"
        for name, heads in (("q", config.heads), ("k", config.kv_heads), ("v", config.kv_heads)):
            _linear(und, f"{layer}.self_attn.{name}_proj", heads * head, width, draw)
        _linear(und, f"{layer}.self_attn.o_proj", width, config.heads * head, draw, gain=branch, bias=False)
        und[f"{layer}.self_attn.q_norm.weight"] = torch.ones(head)
        und[f"{layer}.self_attn.k_norm.weight"] = torch.ones(head)
        _linear(und, f"{layer}.mlp.gate_proj", config.intermediate_size, width, draw, bias=False)
        _linear(und, f"{layer}.mlp.up_proj", config.intermediate_size, width, draw, bias=False)
        _linear(und, f"{layer}.mlp.down_proj", width, config.intermediate_size, draw, gain=branch, bias=False)
        und[f"{layer}.input_layernorm.weight"] = torch.ones(width)
        und[f"{layer}.post_attention_layernorm.weight"] = torch.ones(width)
    und["language_model.model.norm.weight"] = torch.ones(width)
    gen = {_gen_key(key): tensor.clone() for key, tensor in und.items()}
    table = torch.randn(config.vocab_size, width, generator=draw)
    tables = {"language_model.model.embed_tokens.weight": table, "language_model.lm_head.weight": 0.02 * table}
    return und | gen | tables


def _gen_key(key: str) -> str:
    """The generation expert's key: `_moe_gen` follows the module that is doubled (the whole MLP, else the last one)."""
    if ".mlp." in key:
        return key.replace(".mlp.", ".mlp_moe_gen.")
    module, _, kind = key.rpartition(".")
    return f"{module}_moe_gen.{kind}"


def _vision(config: TinyConfig, draw: torch.Generator) -> dict[str, Tensor]:
    """ViT and connector, made so that the low frequencies of every patch survive the way into the language model."""
    width, vit = config.vit_hidden_size, "vit_model.vision_model"
    weights: dict[str, Tensor] = {}
    patch = f"{vit}.embeddings.patch_embedding"
    rotation = torch.linalg.qr(torch.randn(width, width, generator=draw)).Q
    weights[f"{patch}.weight"] = (rotation @ _low_frequencies(config.patch_size, width)).contiguous()
    # The LayerNorms divide by the size of a token. A constant larger than the content makes that size nearly the same
    # for all tokens, so that brightness and contrast are not divided out.
    constant = 0.3 * torch.randn(width, generator=draw)
    weights[f"{patch}.bias"] = constant
    weights[f"{vit}.embeddings.position_embedding.weight"] = 0.02 * torch.randn(
        config.vit_side**2, width, generator=draw
    )
    small = 0.05  # the layers mix a little of the neighbours in and leave the rest as it is
    for j in range(config.vit_layers):
        layer = f"{vit}.encoder.layers.{j}"
        for name in ("q_proj", "k_proj", "v_proj"):
            _linear(weights, f"{layer}.self_attn.{name}", width, width, draw)
        _linear(weights, f"{layer}.self_attn.out_proj", width, width, draw, gain=small)
        _linear(weights, f"{layer}.mlp.fc1", config.vit_intermediate_size, width, draw)
        _linear(weights, f"{layer}.mlp.fc2", width, config.vit_intermediate_size, draw, gain=small)
        _norm(weights, f"{layer}.layer_norm1", width)
        _norm(weights, f"{layer}.layer_norm2", width)
    _norm(weights, f"{vit}.post_layernorm", width)
    _linear(weights, "connector.fc1", config.hidden_size, width, draw)
    _linear(weights, "connector.fc2", config.hidden_size, config.hidden_size, draw, gain=4.0)
    # The same constant would drown the content in the language model's norms: the connector takes it out again.
    grey = torch.nn.functional.layer_norm(constant, (width,), eps=1e-6)
    hidden = torch.nn.functional.gelu(weights["connector.fc1.weight"] @ grey, approximate="tanh")
    weights["connector.fc2.bias"] = -(weights["connector.fc2.weight"] @ hidden)
    return weights


def _norm(into: dict[str, Tensor], name: str, width: int) -> None:
    into[f"{name}.weight"], into[f"{name}.bias"] = torch.ones(width), torch.zeros(width)


def _low_frequencies(side: int, count: int) -> Tensor:
    """The `count` slowest cosine waves of an RGB patch, fp32 [count, side * side * 3], features (row, column, colour).

    Scaled so that an evenly coloured patch yields its colour.
    """
    steps = (torch.arange(side) + 0.5) * math.pi / side
    waves = torch.cos(torch.arange(side)[:, None] * steps)  # [frequency, pixel]
    waves[1:] *= math.sqrt(2)
    order = sorted((down + across, down, across) for down in range(side) for across in range(side))
    rows = [
        torch.einsum("p,q,c->pqc", waves[down], waves[across], torch.eye(3)[colour]).flatten()
        for _, down, across in order[: math.ceil(count / 3)]
        for colour in range(3)
    ]
    return torch.stack(rows[:count]) / side**2
