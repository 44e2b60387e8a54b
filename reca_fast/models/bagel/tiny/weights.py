"""Random weights for the tiny checkpoint, arranged so that a few hundred steps of RECA show an effect.

In the real model the pretrained understanding half passes on what a picture looks like, and attention finds the patch
at the place of a latent. Random weights do neither, and in RECA the understanding half is frozen and cannot learn it.
So the vision tower here begins by measuring the low frequencies of each patch, which its layers change only a little,
and one group of attention heads begins by comparing positions. Everything about pictures is still to be learnt by the
generation half.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from reca_fast.models.parts.position import sincos_table
from reca_fast.models.parts.timestep import TimestepEmbedder

from .config import TinyConfig

SHARPNESS = 1.5
"""Weight of the norms of queries and keys. Attention logits grow with its square, so attention is sharper than at 1."""
LONGEST_WAY = 64
"""How many rotary positions may lie between a picture and its target. The heads that compare places use only those
numbers of a head that rotation over this distance hardly turns.
"""

Weights = dict[str, Tensor]


def tiny_weights(config: TinyConfig, seed: int) -> Weights:
    """Every tensor of ema.safetensors in fp32, under its public key."""
    draw = torch.Generator().manual_seed(seed)
    weights = _understanding_expert(config, draw) | _vision(config, draw)
    width, latent = config.hidden_size, config.latent_patch_size**2 * config.vae.z_channels
    _linear(weights, "vae2llm", width, latent, draw)
    _linear(weights, "time_embedder.mlp.0", width, TimestepEmbedder.FEATURES, draw)
    _linear(weights, "time_embedder.mlp.2", width, width, draw)
    _attend_by_place(weights, config)
    # The authors start the generation expert as a copy, and the velocity at zero.
    weights |= {_gen_key(key): value.clone() for key, value in weights.items() if _is_doubled(key)}
    weights["llm2vae.weight"], weights["llm2vae.bias"] = torch.zeros(latent, width), torch.zeros(latent)
    weights["latent_pos_embed.pos_embed"] = sincos_table(config.latent_side, width)
    weights["vit_pos_embed.pos_embed"] = sincos_table(config.vit_side, width)
    return weights


def _linear(
    into: Weights, name: str, rows: int, cols: int, draw: torch.Generator, *, gain: float = 1.0, bias: bool = True
) -> None:
    """Add a linear layer whose outputs are as large as its inputs, times `gain`; its bias is zero."""
    into[f"{name}.weight"] = torch.randn(rows, cols, generator=draw) * gain / math.sqrt(cols)
    if bias:
        into[f"{name}.bias"] = torch.zeros(rows)


def _norm(into: Weights, name: str, width: int) -> None:
    into[f"{name}.weight"], into[f"{name}.bias"] = torch.ones(width), torch.zeros(width)


def _understanding_expert(config: TinyConfig, draw: torch.Generator) -> Weights:
    width, head = config.hidden_size, config.hidden_size // config.heads
    branch = 1 / math.sqrt(2 * config.layers)  # two branches a layer: all together double the residual stream
    und: Weights = {}
    for i in range(config.layers):
        layer = f"language_model.model.layers.{i}"
        for name, heads in (("q", config.heads), ("k", config.kv_heads), ("v", config.kv_heads)):
            _linear(und, f"{layer}.self_attn.{name}_proj", heads * head, width, draw)
        _linear(und, f"{layer}.self_attn.o_proj", width, config.heads * head, draw, gain=branch, bias=False)
        und[f"{layer}.self_attn.q_norm.weight"] = torch.full((head,), SHARPNESS)
        und[f"{layer}.self_attn.k_norm.weight"] = torch.full((head,), SHARPNESS)
        _linear(und, f"{layer}.mlp.gate_proj", config.intermediate_size, width, draw, bias=False)
        _linear(und, f"{layer}.mlp.up_proj", config.intermediate_size, width, draw, bias=False)
        _linear(und, f"{layer}.mlp.down_proj", width, config.intermediate_size, draw, gain=branch, bias=False)
        und[f"{layer}.input_layernorm.weight"] = torch.ones(width)
        und[f"{layer}.post_attention_layernorm.weight"] = torch.ones(width)
    und["language_model.model.norm.weight"] = torch.ones(width)
    table = torch.randn(config.vocab_size, width, generator=draw)
    return und | {"language_model.model.embed_tokens.weight": table, "language_model.lm_head.weight": 0.02 * table}


def _is_doubled(key: str) -> bool:
    return key.startswith(("language_model.model.layers.", "language_model.model.norm."))


def _gen_key(key: str) -> str:
    """The generation expert's key for one of the understanding expert's: the doubled module's name gets `_moe_gen`."""
    if ".mlp." in key:
        return key.replace(".mlp.", ".mlp_moe_gen.")
    module, _, kind = key.rpartition(".")
    return f"{module}_moe_gen.{kind}"


def _attend_by_place(weights: Weights, config: TinyConfig) -> None:
    """Let the first key/value group of heads compare places: a latent attends to the patch in its row and column.

    The queries and keys of these heads read only the fastest waves of the position tables, and nothing else in the
    model writes to those numbers of the residual stream. It works from the first step on, where the grid of latents and
    the grid of patches have the same number of cells.
    """
    width, head = config.hidden_size, config.hidden_size // config.heads
    turns = LONGEST_WAY / 1_000_000.0 ** (torch.arange(head // 2) / (head // 2))
    slow = [pair for pair, turn in enumerate(turns.tolist()) if turn < 0.5]
    rows = [*slow, *(pair + head // 2 for pair in slow)]
    waves = min(len(rows) // 4, width // 4)
    columns = [block * width // 4 + wave for block in range(4) for wave in range(waves)]
    reader = torch.zeros(head, width)
    reader[rows[: len(columns)], columns] = 1.0
    for i in range(config.layers if columns else 0):
        attention = f"language_model.model.layers.{i}.self_attn"
        weights[f"{attention}.k_proj.weight"][:head] = reader
        group = config.heads // config.kv_heads
        weights[f"{attention}.q_proj.weight"][: group * head] = reader.repeat(group, 1)
    writers = [key for key in weights if key.endswith(("o_proj.weight", "mlp.down_proj.weight"))]
    writers += ["connector.fc2.weight", "connector.fc2.bias", "vae2llm.weight", "time_embedder.mlp.2.weight"]
    for key in writers:
        weights[key][columns] = 0.0
    weights["language_model.model.embed_tokens.weight"][:, columns] = 0.0


def _vision(config: TinyConfig, draw: torch.Generator) -> Weights:
    """Vision tower and connector, through which the low frequencies of every patch reach the language model."""
    width, vit = config.vit_hidden_size, "vit_model.vision_model"
    weights: Weights = {}
    patch = f"{vit}.embeddings.patch_embedding"
    rotation = torch.linalg.qr(torch.randn(width, width, generator=draw)).Q
    weights[f"{patch}.weight"] = (rotation @ _low_frequencies(config.patch_size, width)).contiguous()
    # The LayerNorms divide by the size of a token. A constant larger than the content makes that size nearly the same
    # for all tokens, so that brightness and contrast are not divided out.
    constant = 0.3 * torch.randn(width, generator=draw)
    weights[f"{patch}.bias"] = constant
    table = 0.02 * torch.randn(config.vit_side**2, width, generator=draw)
    weights[f"{vit}.embeddings.position_embedding.weight"] = table
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
    hidden = F.gelu(weights["connector.fc1.weight"] @ F.layer_norm(constant, (width,)), approximate="tanh")
    weights["connector.fc2.bias"] = -(weights["connector.fc2.weight"] @ hidden)
    return weights


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
