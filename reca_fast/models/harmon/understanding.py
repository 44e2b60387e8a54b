"""What Harmon understands: its frozen tensors in the checkpoint's files, and logits of a fixed picture and text."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from reca_fast.kernels import choose_backend
from reca_fast.models.files import fill, uniform
from reca_fast.models.files.sharded import INDEX, open_sharded, shards_of
from reca_fast.models.parts.kl_vae_names import kl_vae_names
from reca_fast.models.protocol import FrozenPart
from reca_fast.sample import Text

from .config import HarmonConfig
from .encoders import HarmonEncoders
from .layout import Piece, build_layout
from .names import EMBEDDING, NETWORK_NAMES
from .network import Harmon
from .tokenizer import HarmonTokenizer
from .weights import vae_place

PICTURE = (2, 3)
"""Rows and columns of tokens in the fixed picture."""
TEXT = "Is there a red cup on a table beside 2 green books?"


def frozen_parts(module: Harmon, config: HarmonConfig, folder: Path, weights: Path) -> list[FrozenPart]:
    """The frozen tensors of the files in a checkpoint folder (see `reca_fast.models.protocol.Model.frozen`)."""
    unread = [NETWORK_NAMES.key(name) for name, p in module.named_parameters() if not p.requires_grad]
    path, prefix = vae_place(folder, weights)
    names = kl_vae_names(config.vae).within(file=prefix)
    with open_sharded(path) as stored:
        vae = [key for key in stored.shapes if names.has(key)]
    return [*_in_files("table of classes", weights, unread), *_in_files("VAE", path, vae)]


def _in_files(name: str, path: Path, keys: list[str]) -> list[FrozenPart]:
    """A part of this name in each of the files that hold it: an index lists several."""
    if not path.name.endswith(INDEX):
        return [FrozenPart(name, path, tuple(keys))]
    shards = {file: tuple(key for key in held if key in keys) for file, held in shards_of(path).items()}
    return [FrozenPart(name, path.parent / file, held) for file, held in shards.items() if held]


@torch.inference_mode()
def understanding_logits(config: HarmonConfig, tokenizer: HarmonTokenizer, folder: Path, weights: Path) -> Tensor:
    """Logits [tokens behind the picture, vocabulary] of TEXT, asked about a picture of noise.

    Everything but the VAE is computed on the CPU in the dtype of the file, which is mapped: the host's own memory holds
    the activations of a few tokens.
    """
    device = torch.device("cpu")
    with torch.device("meta"):
        module = Harmon(config).requires_grad_(False)
    with open_sharded(weights) as stored:
        dtype = stored.dtype(EMBEDDING)
        fill(module, stored, uniform(dtype, device), NETWORK_NAMES)
    module.attention = choose_backend("auto", device, dtype)
    encoders = HarmonEncoders(config)
    encoders.fill(folder, weights, device)

    height, width = (side * config.mar.stride for side in PICTURE)
    noise = torch.Generator().manual_seed(0)
    picture = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=noise)
    prompt = tokenizer.prompt(Text(tuple(tokenizer.encode(TEXT))), seen=True, training=False)
    layout = build_layout([Piece(prompt, condition=PICTURE)], config.mar.buffer_size)
    slots = module.slots(module.see(encoders.latents(picture, torch.float32), layout.encoder), layout.encoder)
    stream = module.llm.stream(module.read(slots, layout.language), layout.language.positions)
    read, _ = module.llm(stream, layout.language.view, module.attention)
    return F.linear(read[-len(prompt.after) :], module.llm.embed_tokens.weight)
