"""A parity case of OpenUni: what the authors' code was given and what it computed, recorded in a folder.

config.json holds the sizes of the model, inputs.safetensors the prompts, padded to one length, and the pictures or
their latents, with every random number of a step; weights.safetensors all weights, in the authors' layout.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reca_fast.errors import UserError
from reca_fast.models.files.folder import read_object
from reca_fast.models.parts.qwen2_config import Qwen2Config
from reca_fast.models.recorded import expected_tensors, read_inputs, recorded_tensor
from reca_fast.sample import RECA, T2I
from reca_fast.schema import from_dict, shown

from ..batch import TIMES, Draws, OpenUniBatch, make_batch, to_cells
from ..config import ConnectorConfig, DCAEConfig, OpenUniConfig, SanaConfig, VitConfig

TASKS = {"image2image": RECA, "text2image": T2I}
SECTIONS = {"llm": Qwen2Config, "vit": VitConfig, "connector": ConnectorConfig, "sana": SanaConfig, "vae": DCAEConfig}
NEEDED = {"input_ids": 2, "attention_mask": 2, "timesteps": 1, "noise": 4}
"""Name of a tensor that every case has -> its number of dimensions."""
MAX_NUMBERS = 2**26
"""No recorded tensor has more numbers."""


@dataclass(frozen=True)
class RecordedCase:
    """A case folder, read."""

    folder: Path
    config: OpenUniConfig
    task: str
    picture: int  # the id that stands for a token of a picture
    inputs: dict[str, Tensor]  # inputs.safetensors, checked

    @classmethod
    def open(cls, folder: Path) -> "RecordedCase | None":
        """The case in a folder, or None when its config.json describes no OpenUni.

        Raises:
            UserError: config.json or inputs.safetensors is missing or damaged.
        """
        where = folder / "config.json"
        raw = read_object(where)
        if "sana" not in raw or "num_queries" not in raw:
            return None
        if missing := [name for name in (*SECTIONS, "special_tokens", "task") if name not in raw]:
            raise UserError(f"{where} lacks {', '.join(missing)}.")
        tokens = raw["special_tokens"]
        if raw["task"] not in TASKS or not isinstance(tokens, dict) or "<IMG_CONTEXT>" not in tokens:
            raise UserError(f"{where} states no task of {', '.join(TASKS)}, or no id of <IMG_CONTEXT>.")
        return cls(folder, _sizes(raw, str(where)), TASKS[raw["task"]], tokens["<IMG_CONTEXT>"], _inputs(folder))

    def batch(self, dtype: torch.dtype) -> OpenUniBatch:
        """The recorded pack as a training batch, without padding, in `dtype` or, if that is wider, in fp32 as collate
        gives it.

        Raises:
            UserError: the recorded tensors contradict each other.
        """
        dtype = torch.promote_types(dtype, torch.float32)
        recorded, noise = self.inputs, self.inputs["noise"].to(dtype)
        rows = zip(recorded["input_ids"], recorded["attention_mask"].bool(), strict=True)
        prompts = [ids[mask].tolist() for ids, mask in rows]
        pixels, latents = (recorded.get(name) for name in ("pixel_values", "image_latents"))
        pictures = () if pixels is None else tuple(pixels.to(dtype))
        if latents is None and not pictures:
            raise UserError(f"{self.folder} holds neither pixel_values nor image_latents.")
        count, _, height, width = noise.shape
        batch = make_batch(
            prompts,
            [(height, width)] * count,
            self.config.num_queries,
            self.picture,
            tasks=[self.task] * count,
            conditions=pictures if self.task == RECA else (),
            targets=pictures if latents is None else (),
            latents=None if latents is None else torch.cat([to_cells(each) for each in latents.to(dtype)]),
            draws=Draws(recorded["timesteps"].to(dtype), 0, torch.cat([to_cells(each) for each in noise])),
        )
        if len(batch.picture_rows) != len(batch.conditions) * self.config.picture_tokens:
            raise UserError(
                f"{self.folder}: the prompts have {len(batch.picture_rows)} tokens for pictures, and there are "
                f"{len(batch.conditions)} pictures of {self.config.picture_tokens}."
            )
        return batch

    def expected(self) -> dict[str, Tensor]:
        """Every recorded tensor that `replay` computes again, under the same name."""
        return expected_tensors(self.folder)

    def tolerance(self, name: str, dtype: torch.dtype) -> float:
        """Largest allowed difference, as a share of the largest entry of the recorded tensor.

        In fp32 it is about what the cases state, which leaves room for another order of additions alone, in bf16 for
        the rounding of that dtype.
        """
        if name in ("llm_attention_mask", "llm_position_ids"):
            return 0.0
        if dtype is torch.bfloat16:
            return 0.4 if "grad" in name else 0.25  # a tiny random SANA divides by weights that are next to zero
        return 2e-4 if "grad" in name else 2e-5


def _sizes(raw: dict[str, Any], where: str) -> OpenUniConfig:
    parts: dict[str, Any] = {name: from_dict(kind, raw[name], f"{name} of {where}") for name, kind in SECTIONS.items()}
    joints = raw.get("lmm", {})
    names = ("select_layer", "downsample_ratio", "ps_version")
    stated = {name: joints[name] for name in names if isinstance(joints, dict) and name in joints}
    stated |= {"num_queries": raw["num_queries"], "projector": raw.get("proj_type", "enc_proj")}
    kind = from_dict(_Joints, stated, where)
    try:
        config = OpenUniConfig(**parts, **vars(kind))
    except ValueError as error:
        raise UserError(f"{where}: {error}.") from None
    if (side := raw.get("vit_input_size", config.vit.image_size)) != config.vit.image_size:
        raise UserError(f"{where}: vit_input_size is {shown(side)}, but the tower sees {config.vit.image_size} pixels.")
    return config


@dataclass(frozen=True)
class _Joints:
    """What joins the parts, checked for its types; `OpenUniConfig` checks the rest."""

    num_queries: int
    projector: str = "enc_proj"
    select_layer: int = -1
    downsample_ratio: float = 0.5
    ps_version: str = "v2"


def _inputs(folder: Path) -> dict[str, Tensor]:
    """Every recorded tensor of the pack.

    Raises:
        UserError: the file is missing or damaged, or a tensor is missing or has another form.
    """
    path = folder / "inputs.safetensors"
    inputs = read_inputs(folder)
    for name, dimensions in NEEDED.items():
        if name not in inputs:
            raise UserError(f"{path} lacks {name}.")
        tensor = inputs[name]
        if tensor.dim() != dimensions or not 0 < tensor.numel() <= MAX_NUMBERS:
            raise UserError(f"{path}: {name} is {list(tensor.shape)}; it must have {dimensions} dimensions.")
    counts = {name: len(inputs[name]) for name in NEEDED}
    if len(set(counts.values())) > 1 or inputs["input_ids"].shape != inputs["attention_mask"].shape:
        raise UserError(f"{path}: the tensors are of different numbers of samples: {counts}.")
    if "image_latents" in inputs:
        recorded_tensor(inputs, "image_latents", tuple(inputs["noise"].shape), path)
    if "pixel_values" in inputs:
        recorded_tensor(inputs, "pixel_values", (len(inputs["noise"]), 3, None, None), path)
    if "sigmas" in inputs:
        sigmas = recorded_tensor(inputs, "sigmas", (len(inputs["noise"]),), path)
        if not torch.allclose(sigmas.double(), inputs["timesteps"].double() / TIMES, atol=1e-5):
            raise UserError(f"{path}: sigmas are not timesteps divided by {TIMES}.")
    if inputs["input_ids"].is_floating_point() or int(inputs["input_ids"].min()) < 0:
        raise UserError(f"{path}: input_ids must be whole numbers from 0 on.")
    return inputs
