"""The frozen encoders: the VLM's own vision tower, and the VAE whose latents are reconstructed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reca_fast.data.images import normalised
from reca_fast.errors import UserError
from reca_fast.models.files import EmptyWeights, fill, open_weights, uniform
from reca_fast.models.files.folder import read_object
from reca_fast.models.files.identity import identity_of_tensors
from reca_fast.models.files.sharded import open_sharded
from reca_fast.models.parts.kl_vae import KLVAE, draw_latents, empty_kl_vae, identity_of_kl_vae, picture_moments
from reca_fast.models.parts.kl_vae_config import KLVAEConfig

from .batch import AuxiliaryBatch
from .family import Family
from .names import names_of
from .tables import give_tables
from .vae import WEIGHTS as VAE_WEIGHTS
from .vae import read_vae
from .vlm import Tower
from .weights import fill_tower

PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
OF_THE_TOWER = ("vision", "downsample_ratio")
"""Beginnings of the entries of config.json that decide what a vision tower computes."""
Colours = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of red, green and blue, which count from 0 to 1."""


@dataclass(frozen=True)
class Goal:
    """What is reconstructed of a picture."""

    vae: KLVAEConfig | None  # None: the pixels
    folder: Path | None  # of the VAE

    @property
    def cell(self) -> int:
        """Side in pixels of what is one column of the target."""
        return 1 if self.vae is None else self.vae.downsample

    @property
    def channels(self) -> int:
        """Numbers of one cell."""
        return 3 if self.vae is None else self.vae.z_channels

    def needed(self) -> Path:
        """The folder of the VAE.

        Raises:
            UserError: there is none.
        """
        if self.folder is None:
            raise UserError(
                "Latents are reconstructed (model.auxiliary.target), and there is no VAE: put one as diffusers writes "
                "it into the folder vae/ of the checkpoint folder, name its folder with --model.auxiliary.vae, or set "
                "--model.auxiliary.target pixel."
            )
        return self.folder


class AuxiliaryEncoders:
    """Both encoders; the tower is on the meta device and the VAE None until they are filled.

    Args:
        tower: of the VLM.
        goal: what is reconstructed.
        colours: with which the tower was trained.
        dtype: of the tower's arithmetic.
    """

    def __init__(self, tower: Tower, goal: Goal, colours: Colours, dtype: torch.dtype) -> None:
        self.tower, self.goal, self.colours, self.dtype = tower, goal, colours, dtype
        self.vae: KLVAE | None = None

    def fill(self, weights: Path, device: torch.device | str) -> None:
        """Give both their weights.

        Raises:
            UserError: a file is missing or damaged, or its tensors are not the model's.
        """
        fill_tower(self.tower, weights, self.dtype, device)
        if self.goal.vae is not None:
            self.vae = read_vae(self.goal.needed(), self.goal.vae, device)

    def identity(self, weights: Path, values: Mapping[str, Any]) -> dict[str, str]:
        """What a cache depends on, by encoder (see `reca_fast.models.protocol.Model.identity_of_encoders`).

        Args:
            weights: what `fill` takes.
            values: config.json of the VLM.
        """
        family = self.tower.family
        own = json.dumps({name: values[name] for name in values if name.startswith(OF_THE_TOWER)}, sort_keys=True)
        with open_sharded(weights) as stored:
            names = names_of(stored, family).tower
            keys = {name: names.key(name) for name in self.tower.state_dict()}
            tower = identity_of_tensors(stored, keys, family.CLASS, self.colours, own)
        if self.goal.vae is None:
            return {"vision tower": tower, "target": "pixels"}
        with open_weights(self.goal.needed() / VAE_WEIGHTS) as stored:
            return {"vision tower": tower, "VAE": identity_of_kl_vae(stored, self.goal.vae)}

    def fill_empty(self, device: torch.device | str) -> None:
        """Give both weights that hold no particular numbers; no file is read."""
        fill(self.tower, EmptyWeights(self.tower), uniform(self.dtype, device))
        give_tables(self.tower, self.tower.tables, device)
        if self.goal.vae is not None:
            self.vae = empty_kl_vae(self.goal.vae, device)

    def drop(self) -> None:
        """Free their memory."""
        self.tower.to("meta")
        self.vae = None

    @torch.no_grad()
    def features(self, picture: Tensor) -> Tensor:
        """What the tower makes of a condition, uint8 [H, W, 3] on its device: [rows, width], in `dtype`."""
        planes = zip((picture.permute(2, 0, 1).float() / 255).unbind(), *self.colours, strict=True)
        pixels = torch.stack([(plane - mean) / deviation for plane, mean, deviation in planes])
        made: Tensor = self.tower(pixels.to(self.dtype))
        return made

    @torch.no_grad()
    def goal_of(self, picture: Tensor) -> Tensor:
        """What is reconstructed of a target, uint8 [H, W, 3], as a cache holds it: [channels, h, w].

        Of a VAE these are the latents of the means: what it would draw around them is noise that no hidden state knows.
        Pixels count from -1 to 1; a cache holds them as the uint8 that they come from.
        """
        if self.goal.vae is None:
            return picture.permute(2, 0, 1).contiguous()
        assert self.vae is not None, "fill_encoders() comes first"
        moments = picture_moments(self.vae, picture)
        return draw_latents(self.goal.vae, moments, torch.zeros_like(moments.chunk(2)[0]))

    def encode(self, batch: AuxiliaryBatch) -> AuxiliaryBatch:
        """The batch with features and goals in place of its pictures, each picture encoded alone. Those that it has are
        kept.
        """
        features, goals = batch.features, batch.goals
        if features is None:
            features = torch.cat([self.features(picture) for picture in batch.conditions])
        if len(goals) < len(batch.reconstructed):
            goals = tuple(self.goal_of(picture) for picture in batch.targets)
        goals = tuple(normalised(goal) if goal.dtype == torch.uint8 else goal for goal in goals)
        return replace(batch, features=features, goals=goals, conditions=(), targets=())


def colours_of(folder: Path, family: Family) -> Colours:
    """Mean and deviation of the tower's input, as the folder's image processor has them.

    Raises:
        UserError: they are not three numbers each.
    """
    for path in (folder / name for name in PREPROCESSOR_FILES):
        if path.is_file():
            values = read_object(path)
            values = values.get("image_processor") or values
            if not isinstance(values, dict) or values.get("image_mean") is None or values.get("image_std") is None:
                continue
            try:
                mean, deviation = (tuple(map(float, values[name])) for name in ("image_mean", "image_std"))
            except (TypeError, ValueError):
                mean, deviation = (), ()
            if len(mean) != 3 or len(deviation) != 3 or min(deviation) <= 0:
                raise UserError(f"{path}: image_mean and image_std must be three numbers each.")
            return mean, deviation
    return family.COLOURS
