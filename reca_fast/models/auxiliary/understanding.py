"""What a VLM says about a fixed picture, computed from the files alone, and which of its tensors are frozen."""

from pathlib import Path

import torch
from torch import Tensor

from reca_fast.kernels import choose_backend
from reca_fast.models.files import open_weights, stored_shapes, uniform
from reca_fast.models.files.sharded import open_sharded, weight_files
from reca_fast.models.protocol import FrozenPart
from reca_fast.sample import I2T, Sample, Turn

from .chat import Chat
from .encoders import AuxiliaryEncoders, Colours, Goal
from .export import VAE_FOLDER
from .inputs import Wording, collate
from .names import names_of
from .vae import WEIGHTS as VAE_WEIGHTS
from .vlm import VLM
from .weights import fill_language, fill_tower

SIDE = 8
"""Of the fixed picture in tokens, where the tower takes pictures of any size."""
TURN = Turn("What is on the table?", "A red cup and 2 green books.")


def frozen_parts(vlm: VLM, folder: Path, weights: Path) -> list[FrozenPart]:
    """The tensors of the tower and of a VAE inside the folder, by file (see `Model.frozen`)."""
    with open_sharded(weights) as stored:
        names = names_of(stored, vlm.family).tower
    wanted = {names.key(name) for name, _ in vlm.tower.named_parameters()}
    parts = []
    files = weight_files(weights)
    for file in files:
        with open_weights(file) as stored:
            inside = tuple(key for key in stored.shapes if key in wanted)
        if inside:
            name = "vision tower" if len(files) == 1 else f"vision tower in {file.name}"
            parts.append(FrozenPart(name, file, inside))
    vae = folder / VAE_FOLDER / VAE_WEIGHTS
    if vae.is_file():
        parts.append(FrozenPart("VAE", vae, tuple(stored_shapes(vae))))
    return parts


@torch.inference_mode()
def understanding_logits(vlm: VLM, chat: Chat, colours: Colours, weights: Path) -> Tensor:
    """Logits [tokens behind a picture of noise, vocabulary] of a conversation about it, on the CPU in the file's dtype.

    Args:
        vlm: on the meta device, for this call alone; its weights stay in the mapped files.
    """
    cpu, family = torch.device("cpu"), vlm.family
    with open_sharded(weights) as stored:
        dtype = stored.dtype(names_of(stored, family).language.key("norm.weight"))
    vlm.language.requires_grad_(False)
    vlm.language.backend = vlm.tower.backend = choose_backend("auto", cpu, dtype)
    vlm.language.dtype = dtype
    fill_language(vlm.language, family, weights, uniform(dtype, cpu))
    fill_tower(vlm.tower, weights, dtype, cpu)
    encoders = AuxiliaryEncoders(vlm.tower, Goal(None, None), colours, dtype)

    side = SIDE * family.pixels_per_token
    fixed = getattr(family, "side", side)
    noise = torch.Generator().manual_seed(0)
    picture = torch.randint(256, (fixed, fixed, 3), dtype=torch.uint8, generator=noise)
    sample = Sample("fixed", (I2T,), picture, None, chat.converse((TURN,)))
    batch = encoders.encode(collate([sample], family, Wording.of(chat), 1))
    assert batch.features is not None
    hidden = vlm.language(batch.ids, batch.positions, batch.segments, batch.image_rows, batch.features)
    logits: Tensor = vlm.language.lm_head(hidden[int(batch.image_rows[-1]) :])
    return logits
