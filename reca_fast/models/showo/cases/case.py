"""A parity case of Show-o: what the authors' code was given and what it computed, recorded in a folder.

config.json holds the sizes of the model, inputs.safetensors the rows of all kinds with the random numbers of a step and
of drawing, and weights.safetensors the weights, those of the frozen encoders among them.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from reca_fast.errors import UserError
from reca_fast.models.files import open_weights
from reca_fast.models.files.folder import read_object
from reca_fast.models.parts.clip_vision_config import ClipVisionConfig
from reca_fast.models.parts.magvit_config import MAGVIT_V2, MagvitConfig
from reca_fast.models.recorded import expected_tensors, read_inputs, recorded_tensor
from reca_fast.schema import Fraction, Range, from_dict

from ..config import ShowoConfig
from ..encoders import EncoderConfig

CLIP, MAGVIT = "vision_tower.", "vq_model."
"""Prefixes of the frozen encoders' names in the file of weights."""
MARKS = ("pad", "soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg")
"""The tokens behind those of the text, in their order."""
KINDS = ("t2i", "lm", "mmu", "recon")
"""Kinds of recorded rows."""
TARGETS = ("recon", "t2i")
"""Those that end with a target."""
VECTOR = -100
"""Stands for one of CLIP's vectors among the recorded ids."""
EXACT = ("codes", "gen_tokens", "gen_mask_len", "gen_masked_after")
"""Parts of the names of tensors that hold whole numbers."""


@dataclass(frozen=True)
class Objective:
    """A weighted sum of losses, whose gradients were recorded."""

    recon_coeff: float = 0.0
    mmu_coeff: float = 0.0
    t2i_coeff: float = 0.0
    lm_coeff: float = 0.0


@dataclass(frozen=True)
class Drawing:
    """How a picture was drawn, under the authors' names."""

    timesteps: Annotated[int, Range(1, 10_000)]
    guidance_scale: Annotated[float, Range(0, 1000)] = 0.0
    temperature: Annotated[float, Range(0, 1000)] = 1.0


@dataclass(frozen=True)
class Settings:
    """What config.json says beside the sizes of the network."""

    objectives: dict[str, Objective] = field(default_factory=dict)
    min_masking_rate: Fraction = 0.0
    eot_id: Annotated[int, Range(0, 2**22)] = 0
    image_size: Annotated[int, Range(1, 4096)] = 16
    down_scale: Annotated[int, Range(1, 256)] = 1
    resize_back: bool = False
    gen: Drawing | None = None
    clip: ClipVisionConfig | None = None


@dataclass(frozen=True)
class RecordedCase:
    """A case folder, read."""

    folder: Path
    config: ShowoConfig
    settings: Settings
    inputs: dict[str, Tensor]  # inputs.safetensors

    @classmethod
    def open(cls, folder: Path) -> "RecordedCase | None":
        """The case in a folder, or None when its config.json describes no Show-o.

        Raises:
            UserError: a file is missing or damaged.
        """
        raw = read_object(folder / "config.json")
        if "w_clip_vit" not in raw or "codebook_size" not in raw:
            return None
        where = str(folder / "config.json")
        config = ShowoConfig.from_dict(raw, where)
        _check_tokens(raw.get("token_ids", {}), config, where)
        case = cls(folder, config, _settings(raw, where), read_inputs(folder))
        case._check()
        return case

    def _check(self) -> None:
        """Raises UserError for inputs that are no recorded rows."""
        path, inputs, codes = self.folder / "inputs.safetensors", self.inputs, self.config.num_vq_tokens
        for kind in KINDS:
            if not any(f"{kind}_{part}" in inputs for part in ("input_ids", "labels", "mask_u", "mask_rand")):
                continue
            ids = recorded_tensor(inputs, f"{kind}_input_ids", (None, None), path)
            shapes: dict[str, tuple[int | None, ...]] = {f"{kind}_labels": tuple(ids.shape)}
            if kind in TARGETS:
                shapes = {f"{kind}_mask_u": (len(ids),), f"{kind}_mask_rand": (len(ids), codes)}
            shapes |= {f"codes_{kind}": (len(ids), codes)} if f"codes_{kind}" in inputs else {}
            shapes |= {f"pixels_{kind}": (len(ids), 3, None, None)} if f"pixels_{kind}" in inputs else {}
            for name, shape in shapes.items():
                recorded_tensor(inputs, name, shape, path)
            self._check_ids(f"{kind}_input_ids", VECTOR if self.config.w_clip_vit else 0)
        if any(name.startswith("gen_") for name in inputs):
            if self.settings.gen is None:
                raise UserError(f"{self.folder / 'config.json'} lacks gen, which says how pictures were drawn.")
            ids = recorded_tensor(inputs, "gen_input_ids", (None, None), path)
            drawn = (self.settings.gen.timesteps, len(ids), codes)
            for name in ("gen_raw_samples", "gen_uniform"):
                recorded_tensor(inputs, name, drawn, path)
            if self.settings.gen.guidance_scale > 0:
                recorded_tensor(inputs, "gen_uncond_ids", tuple(ids.shape), path)

    def _check_ids(self, name: str, least: int) -> None:
        """Raises UserError for ids that are neither in the vocabulary nor this negative number."""
        ids = self.inputs[name]
        real = ids[ids != least] if least < 0 else ids
        if ids.is_floating_point() or (
            real.numel() and not 0 <= int(real.min()) <= int(real.max()) < self.config.vocab_size
        ):
            raise UserError(f"{self.folder / 'inputs.safetensors'}: {name} holds ids beyond the vocabulary.")

    def encoders(self, weights: Path) -> EncoderConfig:
        """Sizes of the frozen encoders, the tokenizer's from the file of weights. Where the case has none, those of the
        published one with this case's number of codes stand in its place.
        """
        with open_weights(weights) as stored:
            held = any(key.startswith(MAGVIT) for key in stored.shapes)
            magvit = MagvitConfig.from_shapes(stored.shapes, str(weights), MAGVIT) if held else self._no_magvit()
        return EncoderConfig(magvit, self.settings.clip)

    def _no_magvit(self) -> MagvitConfig:
        bits = self.config.codebook_size.bit_length() - 1
        return MagvitConfig(bits, MAGVIT_V2.width, MAGVIT_V2.encoder, MAGVIT_V2.decoder)

    def rows(self, kind: str) -> list[Tensor]:
        """The recorded token ids of each row of a kind: t2i, lm, mmu or recon; none if there are no such rows."""
        return list(self.inputs.get(f"{kind}_input_ids", torch.zeros(0, 0, dtype=torch.int64)))

    def expected(self) -> dict[str, Tensor]:
        """Every recorded tensor that `replay` computes again, under the same name."""
        return expected_tensors(self.folder)

    def tolerance(self, name: str, dtype: torch.dtype) -> float:
        """Largest allowed difference, as a share of the largest entry of the recorded tensor.

        In fp32 it leaves room for another order of additions alone, in bf16 for the rounding of that dtype.
        """
        if dtype is torch.bfloat16 and name.startswith("gen_"):
            return 1.0  # one rounding may let another code be drawn, and all that follows differs
        if any(part in name for part in EXACT):
            return 0.0
        if dtype is torch.bfloat16:
            return 0.1 if "grad" in name else 0.05
        return 1e-6 if "scalar/" in name and "grad" not in name else 1e-5


def _check_tokens(stated: Any, config: ShowoConfig, where: str) -> None:
    """Raises UserError for ids of special tokens that are not those that follow from the sizes of the vocabulary."""
    wanted = {name: config.llm_vocab_size + number for number, name in enumerate(MARKS)}
    wanted |= {"image_offset": config.first_code, "mask": config.vocab_size - 1, "vocab_size": config.vocab_size}
    if not isinstance(stated, dict) or any(stated.get(name, number) != number for name, number in wanted.items()):
        raise UserError(f"{where}: token_ids are not those of a vocabulary of {config.llm_vocab_size} tokens of text.")


def _settings(raw: dict[str, Any], where: str) -> Settings:
    try:
        return from_dict(Settings, raw, where)
    except ValueError as error:
        raise UserError(f"{where}: {error}.") from None
