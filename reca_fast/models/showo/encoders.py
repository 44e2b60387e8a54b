"""Show-o's frozen encoders: the MAGVIT-v2 tokenizer, which makes codes of pictures and pictures of codes, and CLIP's
vision tower where the checkpoint has one.

They stand beside the network, which reads nothing but their outputs, and compute in fp32 whatever the model's
arithmetic is, as the authors have it: codes are signs of small numbers.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from reca_fast.models.files import Weights, open_weights
from reca_fast.models.parts.clip_vision import (
    ClipVision,
    clip_file,
    empty_clip_vision,
    fill_clip_vision,
    identity_of_clip_vision,
    plain_pixels,
    processed_pixels,
    read_clip_vision,
)
from reca_fast.models.parts.clip_vision_config import CLIP_VIT_L_336, ClipVisionConfig
from reca_fast.models.parts.magvit import (
    MAGVIT_FOLDER,
    Magvit,
    empty_magvit,
    fill_magvit,
    identity_of_magvit,
    magvit_file,
    picture_codes,
)
from reca_fast.models.parts.magvit import read_magvit as read_magvit_folder
from reca_fast.models.parts.magvit_config import MAGVIT_V2, MagvitConfig

from .batch import CODES, VECTORS_SEEN, VECTORS_UNDERSTOOD, ShowoBatch

CLIP_FOLDER = "clip"
"""CLIP's folder inside a checkpoint folder."""


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the frozen encoders."""

    magvit: MagvitConfig = MAGVIT_V2
    clip: ClipVisionConfig | None = CLIP_VIT_L_336  # None where the checkpoint has no CLIP

    @classmethod
    def from_folder(cls, folder: Path, *, clip: bool) -> "EncoderConfig":
        """Of a checkpoint folder: the tokenizer's sizes are read from the names and shapes in its file.

        Raises:
            UserError: a file is missing or damaged.
        """
        with open_weights(magvit_file(folder / MAGVIT_FOLDER)) as weights:
            magvit = MagvitConfig.from_shapes(weights.shapes, str(weights.path))
        if not clip:
            return cls(magvit, None)
        clip_file(folder / CLIP_FOLDER)  # raises where there is none
        return cls(magvit, ClipVisionConfig.from_folder(folder / CLIP_FOLDER))


class ShowoEncoders:
    """The tokenizer and CLIP; both are None until they are filled, and CLIP where the checkpoint has none.

    Args:
        config: their sizes.
        clip_sees: whether CLIP sees the conditions; otherwise the tokenizer makes codes of them.
        dtype: of the model's arithmetic, to which CLIP's vectors are rounded.
    """

    def __init__(self, config: EncoderConfig, *, clip_sees: bool, dtype: torch.dtype) -> None:
        self.config, self.clip_sees, self.dtype = config, clip_sees, dtype
        self.magvit: Magvit | None = None
        self.clip: ClipVision | None = None

    def fill(self, folder: Path, device: torch.device | str) -> None:
        """Give both their weights from a checkpoint folder.

        Raises:
            UserError: a file is missing or damaged, or its tensors are not theirs.
        """
        self.magvit = read_magvit_folder(folder / MAGVIT_FOLDER, device)
        if self.config.clip is not None and self.clip_sees:
            self.clip = read_clip_vision(folder / CLIP_FOLDER, self.config.clip, device)

    def identity(self, folder: Path) -> dict[str, str]:
        """What a cache depends on, by encoder (see `reca_fast.models.protocol.Model.identity_of_encoders`)."""
        with open_weights(magvit_file(folder / MAGVIT_FOLDER)) as stored:
            found = {"tokenizer of pictures": identity_of_magvit(stored, self.config.magvit)}
        if self.config.clip is not None and self.clip_sees:
            with open_weights(clip_file(folder / CLIP_FOLDER)) as stored:
                found["CLIP"] = identity_of_clip_vision(stored, self.config.clip)
        return found

    def files(self, folder: Path) -> list[Path]:
        """Their files in a checkpoint folder."""
        found = [magvit_file(folder / MAGVIT_FOLDER)]
        if self.config.clip is not None:
            clip = folder / CLIP_FOLDER
            found += [path for path in (clip / "config.json", clip_file(clip)) if path.is_file()]
        return found

    def fill_from(self, weights: Weights, device: torch.device | str, *, magvit: str, clip: str) -> None:
        """Give them their weights from one file, where their names stand below the prefixes `magvit` and `clip`. One
        that the file does not hold stays None.
        """
        if any(key.startswith(magvit) for key in weights.shapes):
            self.magvit = fill_magvit(weights, device, under=magvit)
        if self.config.clip is not None and any(key.startswith(clip) for key in weights.shapes):
            self.clip = fill_clip_vision(weights, self.config.clip, device, under=clip)

    def fill_empty(self, device: torch.device | str) -> None:
        """Give both weights that hold no particular numbers; no file is read."""
        self.magvit = empty_magvit(self.config.magvit, device)
        if self.config.clip is not None and self.clip_sees:
            self.clip = empty_clip_vision(self.config.clip, device)

    @torch.no_grad()
    def encode(self, batch: ShowoBatch) -> ShowoBatch:
        """The batch with codes and vectors in place of its pictures. Those that it has are kept."""
        given, codes, vectors = batch.given, batch.codes, batch.vectors
        if batch.conditions and self.clip_sees and vectors is None:
            each = zip(batch.conditions, batch.understood, strict=True)
            vectors = torch.cat([self.vectors(picture, understood=kind) for picture, kind in each])
        elif batch.conditions and given is None:
            given = torch.cat([self.codes(picture) for picture in batch.conditions])
        if batch.targets and codes is None:
            codes = torch.cat([self.codes(picture) for picture in batch.targets])
        return replace(batch, given=given, codes=codes, vectors=vectors, conditions=(), targets=())

    def of_condition(self, picture: Tensor) -> dict[str, Tensor]:
        """What a cache holds of a condition, uint8 [H, W, 3]. A reconstruction shows it to CLIP otherwise than CLIP's
        own processor does, and a cache serves both.
        """
        if not self.clip_sees:
            return self.of_target(picture)
        names = {VECTORS_SEEN: False, VECTORS_UNDERSTOOD: True}
        return {name: self.vectors(picture, understood=kind) for name, kind in names.items()}

    def of_target(self, picture: Tensor) -> dict[str, Tensor]:
        """What a cache holds of a target, uint8 [H, W, 3]: its codes, in two bytes each where they fit."""
        codes = self.codes(picture)
        return {CODES: codes.to(torch.int16) if self.config.magvit.codebook_size <= 2**15 else codes}

    def codes(self, picture: Tensor) -> Tensor:
        """The codes of one picture, uint8 [H, W, 3] on the device: int64 [h * w], row by row.

        Raises:
            ValueError: the tokenizer has no weights yet.
        """
        if self.magvit is None:
            raise ValueError("the tokenizer of pictures has no weights; fill_encoders() comes first")
        return picture_codes(self.magvit, picture).flatten()

    @torch.no_grad()
    def vectors(self, picture: Tensor, *, understood: bool) -> Tensor:
        """What CLIP makes of one picture, uint8 [H, W, 3] on the device: [patches, width] in the model's dtype.

        Args:
            understood: prepared by CLIP's own rule; otherwise as RECA's reconstructions show it.

        Raises:
            ValueError: CLIP has no weights yet.
        """
        if self.clip is None:
            raise ValueError("CLIP has no weights; fill_encoders() comes first")
        side = self.clip.config.image_size
        pixels = processed_pixels(picture, side) if understood else plain_pixels(picture, side)
        return self.seen(pixels)[0]

    def seen(self, pixels: Tensor) -> Tensor:
        """What CLIP makes of pixels [B, 3, S, S]: [B, patches, width] in the model's dtype."""
        assert self.clip is not None, "fill() comes first"
        with torch.autocast(pixels.device.type, enabled=False):
            out: Tensor = self.clip(pixels).to(self.dtype)
        return out

    def decode(self, codes: Tensor, rows: int, columns: int) -> Tensor:
        """The picture of codes [rows * columns]: uint8 [H, W, 3] on the host.

        Raises:
            ValueError: the tokenizer has no weights yet.
        """
        if self.magvit is None:
            raise ValueError("the tokenizer of pictures has no weights; fill_encoders() comes first")
        pixels = self.magvit.decode(codes.view(1, rows, columns))[0]
        grey = ((pixels + 1) / 2).clamp(0, 1) * 255  # cut off to whole levels, as the authors do it
        return grey.to(torch.uint8).permute(1, 2, 0).cpu()
