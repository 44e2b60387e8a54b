"""What BAGEL understands: its frozen tensors in the checkpoint's files, and logits of a fixed picture and text."""

from pathlib import Path

import torch
from torch import Tensor, nn

from reca_fast.kernels import choose_backend
from reca_fast.models.files import NameTable, open_weights, uniform
from reca_fast.models.parts.kl_vae_names import kl_vae_names
from reca_fast.models.protocol import FrozenPart

from .collate import collate_prefixes
from .config import BagelConfig
from .encoders import VAE_FILE, BagelEncoders
from .names import NETWORK_NAMES, TABLES, VIT_NAMES
from .network import Bagel
from .tokenizer import BagelTokenizer
from .weights import fill_bagel

PARTS = {
    "layers": "understanding expert",
    "norm": "understanding expert",
    "embed_tokens": "embeddings",
    "lm_head": "embeddings",
    "connector": "connector",
}
"""First word of a parameter's name -> the part that it belongs to."""
PICTURE = (3, 2)
"""Rows and columns of patches in the fixed picture."""
TEXT = "a red cup on a table beside 2 green books; describe this picture"


def frozen_parts(module: Bagel, encoders: BagelEncoders, folder: Path, weights: Path) -> list[FrozenPart]:
    """The frozen tensors of the files in a checkpoint folder (see `reca_fast.models.protocol.Model.frozen`).

    Args:
        module: built; whether a parameter is frozen is asked of it.
        weights: the file of weights.
    """
    keys: dict[str, list[str]] = {}
    left_out = () if module.unread is None else module.unread.named_parameters()
    for name, parameter in (*module.named_parameters(), *left_out):
        if not parameter.requires_grad:
            part = PARTS.get(name.partition(".")[0], "the rest of the network")
            keys.setdefault(part, []).append(NETWORK_NAMES.key(name))
    keys["vision tower"] = _keys(encoders.vit, VIT_NAMES)
    with open_weights(weights) as stored:
        keys["position tables"] = [key for key in TABLES if key in stored.shapes]
    parts = [FrozenPart(name, weights, tuple(found)) for name, found in keys.items() if found]
    if (folder / VAE_FILE).exists():
        names = kl_vae_names(encoders.config.vae)
        with open_weights(folder / VAE_FILE) as stored:
            parts.append(FrozenPart("VAE", folder / VAE_FILE, tuple(key for key in stored.shapes if names.has(key))))
    return parts


def _keys(module: nn.Module, names: NameTable) -> list[str]:
    return [names.key(name) for name, _ in module.named_parameters()]


@torch.inference_mode()
def understanding_logits(config: BagelConfig, tokenizer: BagelTokenizer, weights: Path) -> Tensor:
    """Logits [tokens of the text and its two markers, vocabulary] of TEXT behind a picture of noise.

    Everything is computed on the CPU in the dtype of the file, which is mapped: the host's own memory holds the
    activations of a few tokens.
    """
    with open_weights(weights) as stored:
        dtype = stored.dtype(NETWORK_NAMES.key("lm_head.weight"))
    device = torch.device("cpu")
    with torch.device("meta"):
        module = Bagel(config, whole=True).requires_grad_(False)
    module.attention = choose_backend("auto", device, dtype)
    fill_bagel(module, weights, uniform(dtype, device))
    encoders = BagelEncoders(config)
    encoders.fill_vit(weights, dtype, device)

    height, width = (side * config.vit.patch_size for side in PICTURE)
    noise = torch.Generator().manual_seed(0)
    picture = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=noise)
    ids = tokenizer.encode(TEXT)
    batch, *_ = collate_prefixes([(picture, ids)], config, tokenizer)
    batch = encoders.encode(batch, torch.float32, module.attention)  # no autocast: all weights have the file's dtype
    und, _, _ = module.decode(module.embed_understanding(batch), None, batch.plan, batch.und_positions, None)
    assert und is not None, "asked for"
    last: Tensor = module.norm(und[len(und) - len(ids) - 2 :])  # the stream is sorted: full splits, then causal ones
    logits: Tensor = module.lm_head(last)
    return logits
