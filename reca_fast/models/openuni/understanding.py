"""What OpenUni understands: its frozen tensors in the checkpoint's files, and logits of a fixed picture and text."""

from pathlib import Path

import torch
from torch import Tensor

from reca_fast.kernels import choose_backend
from reca_fast.models.files import fill, uniform
from reca_fast.models.parts.qwen2 import causal_view
from reca_fast.models.protocol import FrozenPart

from .config import OpenUniConfig
from .folder import OpenUniFolder
from .names import NETWORK_NAMES, VIT_NAMES
from .network import OpenUni
from .tokenizer import OpenUniTokenizer
from .vit import InternVit

PARTS = {
    "lmm.vision_model.": "vision tower",
    "lmm.mlp1.": "picture projector",
    "lmm.language_model.": "language model",
    "vae.": "DC-AE",
}
"""Beginning of a key in the authors' layout -> the frozen part that it belongs to."""
HEAD = "lmm.language_model.lm_head.weight"
PICTURE = (48, 64)
"""Height and width in pixels of the fixed picture."""
TEXT = "a red cup on a table beside 2 green books; describe this picture"


def frozen_parts(folder: OpenUniFolder) -> list[FrozenPart]:
    """The frozen tensors of the files in a checkpoint folder (see `reca_fast.models.protocol.Model.frozen`), and the
    authors' file with none, so that what training changes there is counted.
    """
    found: dict[tuple[str, Path], list[str]] = {("trained parts", folder.own): []}
    with folder.weights() as weights:
        for key, pieces in weights.sources.items():
            part = next((name for prefix, name in PARTS.items() if key.startswith(prefix)), None)
            for piece in pieces if part else ():
                found.setdefault((part or "", piece.weights.path), []).append(piece.key)
    parts = []
    for (name, file), keys in found.items():
        alone = sum(other == name for other, _ in found) == 1
        parts.append(FrozenPart(name if alone else f"{name} in {file.name}", file, tuple(keys)))
    return parts


@torch.inference_mode()
def understanding_logits(config: OpenUniConfig, tokenizer: OpenUniTokenizer, folder: OpenUniFolder) -> Tensor:
    """Logits [tokens of the instruction and what closes its frame, vocabulary] of TEXT behind a picture of noise.

    Everything is computed on the CPU in the dtype of the files, which are mapped: the host's own memory holds the
    activations of a few tokens.
    """
    device = torch.device("cpu")
    with folder.weights() as weights:
        dtype = weights.dtype(HEAD)
        with torch.device("meta"):
            module, vit = OpenUni(config).requires_grad_(False), InternVit(config).requires_grad_(False)
        module.attention = choose_backend("auto", device, dtype)
        fill(module, weights, uniform(dtype, device), NETWORK_NAMES)
        fill(vit, weights, uniform(dtype, device), VIT_NAMES)
        head = weights.tensor(HEAD)
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (3, *PICTURE), generator=noise).float() / 127.5 - 1
    instruction = tokenizer.encode(TEXT)
    prompt = torch.tensor(tokenizer.about_picture(config.picture_tokens, instruction))
    rows = module.embed_tokens(prompt, device, dtype)
    places = (prompt == tokenizer.picture).nonzero()[:, 0]
    rows = rows.index_copy(0, places, vit(pixels, module.attention))
    stream = module.decoder.stream(rows, torch.arange(len(prompt)))
    hidden, _ = module.decoder(stream, causal_view([len(prompt)]), module.attention)
    behind = int(places[-1]) + 1
    logits: Tensor = hidden[behind:] @ head.T
    return logits
