"""Random weights for the tiny checkpoint, under the public keys."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from reca_fast.models.parts.clip_vision import ClipVision, clip_names
from reca_fast.models.parts.magvit import Magvit, signs_of

from .config import TinyConfig

Weights = dict[str, Tensor]


def language_model(config: TinyConfig, seed: int) -> Weights:
    """Every tensor of pytorch_model.safetensors in fp32, under its public key."""
    draw = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    width, wide, head = config.hidden_size, config.intermediate_size, config.hidden_size // config.heads
    branch = 1 / math.sqrt(2 * config.layers)  # two branches a layer: all together double the residual stream
    for i in range(config.layers):
        layer = f"showo.model.layers.{i}"
        _norm(weights, f"{layer}.input_layernorm", width)
        for part in ("q_proj", "k_proj", "v_proj"):
            _linear(weights, f"{layer}.self_attn.{part}", width, width, draw)
        _linear(weights, f"{layer}.self_attn.dense", width, width, draw, gain=branch)
        _norm(weights, f"{layer}.self_attn.q_layernorm", head)
        _norm(weights, f"{layer}.self_attn.k_layernorm", head)
        _linear(weights, f"{layer}.mlp.fc1", wide, width, draw)
        _linear(weights, f"{layer}.mlp.fc2", width, wide, draw, gain=branch)
    _norm(weights, "showo.model.final_layernorm", width)
    weights["showo.model.embed_tokens.weight"] = torch.randn(config.vocab_size, width, generator=draw)
    _linear(weights, "showo.lm_head", config.vocab_size, width, draw, gain=0.1)
    if config.clip:
        _linear(weights, "mm_projector.0", width, config.tower.hidden_size, draw)
        _linear(weights, "mm_projector.2", width, width, draw)
    return weights


def tokenizer(config: TinyConfig, seed: int) -> Weights:
    """Every tensor of magvitv2/pytorch_model.safetensors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        magvit = Magvit(config.magvit).requires_grad_(False)
        pictures = nn.functional.interpolate(torch.rand(8, 3, 8, 8) * 2 - 1, scale_factor=8.0, mode="bicubic")
    _use_all_codes(magvit, pictures)
    return stored(magvit)


def stored(magvit: Magvit) -> Weights:
    """The tensors of a tokenizer as its public file has them: its own, and two tables that nothing reads."""
    bits = magvit.config.code_bits
    tables = {
        "quantize.embedding": signs_of(torch.arange(2**bits)[None, None], bits)[0, :, 0].T.contiguous(),
        "quantize.power_vals": 2 ** torch.arange(bits - 1, -1, -1),
    }
    return magvit.state_dict() | tables


def _use_all_codes(magvit: Magvit, pictures: Tensor) -> None:
    """Move each bit's threshold to the middle of what the encoder gives, so that it is set in half of the cells: random
    weights would give nearly all cells one code.
    """
    middle = magvit.z(pictures).transpose(0, 1).flatten(1).median(dim=1).values
    magvit.encoder.quant_conv.bias -= middle  # type: ignore[operator]


def tower(config: TinyConfig, seed: int) -> Weights:
    """Every tensor of clip/model.safetensors: the whole vision tower, also the layer and the norm that are not used."""
    draw = torch.Generator().manual_seed(seed)
    whole = replace(config.tower, select_layer=-1)
    names, weights = clip_names(whole), Weights()
    branch = 1 / math.sqrt(2 * whole.num_hidden_layers)
    with torch.device("meta"):
        empty = ClipVision(whole).state_dict()
    for name, tensor in empty.items():
        numbers = torch.zeros(tensor.shape)
        if name.endswith("weight") and "norm" in name:
            numbers = torch.ones(tensor.shape)
        elif not name.endswith("bias"):
            gain = branch if name.endswith(("out_proj.weight", "fc2.weight")) else 1.0
            numbers = torch.randn(tensor.shape, generator=draw) * gain / math.sqrt(tensor[0].numel())
        weights[names.key(name)] = numbers
    _norm(weights, "vision_model.post_layernorm", whole.hidden_size)
    return weights


def _linear(into: Weights, name: str, rows: int, columns: int, draw: torch.Generator, *, gain: float = 1.0) -> None:
    """Add a linear layer whose outputs are as large as its inputs, times `gain`; its bias is zero."""
    into[f"{name}.weight"] = torch.randn(rows, columns, generator=draw) * gain / math.sqrt(columns)
    into[f"{name}.bias"] = torch.zeros(rows)


def _norm(into: Weights, name: str, width: int) -> None:
    into[f"{name}.weight"], into[f"{name}.bias"] = torch.ones(width), torch.zeros(width)
