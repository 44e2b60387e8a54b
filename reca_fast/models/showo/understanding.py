"""What Show-o understands: its frozen tensors in the checkpoint's files, and logits of a fixed picture and text."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reca_fast.kernels import choose_backend
from reca_fast.models.files import fill, open_weights, uniform
from reca_fast.models.parts.clip_vision import clip_file
from reca_fast.models.parts.magvit import MAGVIT_FOLDER, magvit_file
from reca_fast.models.protocol import FrozenPart
from reca_fast.sample import I2T, Sample, Text

from .batch import make_batch
from .collate import num_codes, pictures_of
from .encoders import CLIP_FOLDER, EncoderConfig, ShowoEncoders
from .names import NETWORK_NAMES
from .network import Showo
from .rows import RowMaker

if TYPE_CHECKING:
    from .model import ShowoModel

CELLS = (3, 2)
"""Rows and columns of codes in the fixed picture."""
TEXT = "a red cup on a table beside 2 green books; describe this picture"


def frozen_parts(folder: Path, weights: Path, encoders: EncoderConfig) -> list[FrozenPart]:
    """The frozen tensors in the files of a checkpoint folder: those of the encoders, for all of the network is trained
    (see `reca_fast.models.protocol.Model.frozen`).
    """
    parts = {"tokenizer of pictures": magvit_file(folder / MAGVIT_FOLDER)}
    if encoders.clip is not None:
        parts["CLIP"] = clip_file(folder / CLIP_FOLDER)
    found = [FrozenPart("network", weights, ())]
    for name, path in parts.items():
        with open_weights(path) as stored:
            found.append(FrozenPart(name, path, tuple(stored.shapes)))
    return found


@torch.inference_mode()
def understanding_logits(model: "ShowoModel") -> Tensor:
    """Logits [tokens of the text, vocabulary] of TEXT behind a picture of noise, as the model reads a picture to
    understand it. Everything is computed on the CPU from the files, in the dtype of the network's file.
    """
    with open_weights(model.weights) as stored:
        dtype = stored.dtype(NETWORK_NAMES.key("lm_head.weight"))
        with torch.device("meta"):
            module = Showo(model.config, model.vector_width).requires_grad_(False)
        module.attention = choose_backend("auto", "cpu", dtype)
        fill(module, stored, uniform(dtype, "cpu"), NETWORK_NAMES)
    sizes = model.encoders.config
    encoders = ShowoEncoders(sizes, clip_sees=model.clip_sees, dtype=dtype)
    encoders.fill(model.folder, "cpu")

    height, width = (side * sizes.magvit.downsample for side in CELLS)
    noise = torch.Generator().manual_seed(0)
    picture = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=noise)
    text = Text(tuple(model.tokenizer.encode(TEXT)))
    sample = Sample("fixed", (I2T,), picture, None, text)
    vectors = sizes.clip.num_patches if model.clip_sees and sizes.clip else None
    spans = RowMaker(model.tokenizer, vectors).spans(num_codes((width, height), sizes.magvit.downsample), None, text)
    batch = encoders.encode(make_batch([spans], pictures=pictures_of([sample], clip=model.clip_sees)))
    last = batch.positions.argsort()[-len(text.ids) :]  # the text comes last
    logits: Tensor = module.lm_head(module(batch, batch.text_ids[:0], last))
    return logits
