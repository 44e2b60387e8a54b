"""Random weights for the tiny checkpoint."""

import math

import torch
from torch import Tensor

from ..config import HarmonConfig
from ..names import NETWORK_NAMES
from ..network import Harmon

TABLES = ("pos_embed_learned", "fake_latent", "mask_token", "class_emb.weight")
RESIDUAL = ("attn.proj.weight", "mlp.fc2.weight", "o_proj.weight", "down_proj.weight")
"""Ends of the names of what adds to a residual stream."""
SILENT = ("adaLN_modulation.1.weight", "final_layer.linear.weight")
"""Those that begin at zero, as the authors begin them: the denoiser's blocks do nothing then, and it predicts zero."""


def tiny_weights(config: HarmonConfig, seed: int) -> dict[str, Tensor]:
    """Every tensor of a file of weights but the head, fp32, under its public key."""
    with torch.device("meta"):
        module = Harmon(config)
    draw = torch.Generator().manual_seed(seed)
    depth = {"mar": config.mar.encoder_depth, "llm": config.llm.num_hidden_layers}
    weights = {}
    for name, parameter in module.named_parameters():
        shape = parameter.shape
        if name.endswith(TABLES):
            value = 0.2 * torch.randn(shape, generator=draw)
        elif len(shape) == 1:
            value = (
                torch.ones(shape)
                if ("norm" in name and name.endswith("weight")) or "ln.weight" in name
                else torch.zeros(shape)
            )
        elif name.endswith(SILENT):
            value = torch.zeros(shape)
        else:
            gain = 0.05 if "embed_tokens" in name else 1 / math.sqrt(shape[1])
            if name.endswith(RESIDUAL):
                gain /= math.sqrt(2 * depth[name.partition(".")[0]])
            value = gain * torch.randn(shape, generator=draw)
        weights[NETWORK_NAMES.key(name)] = value
    return weights
