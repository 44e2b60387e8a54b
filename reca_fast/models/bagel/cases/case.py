"""A parity case of BAGEL: what the authors' code was given and what it computed, recorded in a folder.

config.json holds the sizes of the model, inputs.safetensors one pack with every random number of a step, and
weights.safetensors the weights. What the authors' code computed stands in expected.safetensors and expected.json, and
in files with a name behind `expected_` where the same pack went through it with other parts trained.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reca_fast.errors import UserError
from reca_fast.models.files.folder import read_object
from reca_fast.models.recorded import expected_tensors
from reca_fast.objectives import shifted_logit_normal
from reca_fast.sample import RECA

from ..batch import BagelBatch, Draws, PackedSequence, make_batch
from ..config import BagelConfig
from ..latent_tokens import patchify_latents
from .recorded import read_inputs

JOINT = "joint"
"""Name of the variant in which nothing but the ViT and the VAE is frozen, with cross-entropy on the texts."""


@dataclass(frozen=True)
class RecordedCase:
    """A case folder, read. Its variants share the pack and differ in what is trained."""

    folder: Path
    config: BagelConfig
    raw: dict[str, Any]  # what config.json holds
    inputs: dict[str, Tensor]  # inputs.safetensors, checked

    @classmethod
    def open(cls, folder: Path) -> "RecordedCase | None":
        """The case in a folder, or None when its config.json describes no BAGEL.

        Raises:
            UserError: config.json or inputs.safetensors is missing or damaged.
        """
        raw = read_object(folder / "config.json")
        if "llm_config" not in raw:
            return None
        config = BagelConfig.from_dict(raw, str(folder / "config.json"))
        return cls(folder, config, raw, read_inputs(folder / "inputs.safetensors"))

    @property
    def variants(self) -> list[str]:
        """Names of the case's variants. The first is always "", in which the understanding side is frozen."""
        named = {path.stem.removeprefix("expected_") for path in self.folder.glob("expected_*.safetensors")}
        return ["", *sorted(named | ({JOINT} if self.raw.get("has_joint_run") else set()))]

    def batch(self, dtype: torch.dtype = torch.float32) -> BagelBatch:
        """The recorded pack as a training batch, with the recorded latents and random numbers in `dtype`.

        Raises:
            UserError: the recorded pack is none that this code can train on.
        """
        recorded = self.inputs
        empty = torch.zeros(0, dtype=torch.int64)  # a case may have no condition or no labels
        shapes = [tuple(shape) for shape in recorded["patchified_vae_latent_shapes"].tolist()]
        try:
            packed = PackedSequence(
                sample_lens=recorded["sample_lens"].tolist(),
                split_lens=recorded["split_lens"].tolist(),
                attn_modes=recorded["attn_modes"].tolist(),
                packed_text_ids=recorded["packed_text_ids"],
                packed_text_indexes=recorded["packed_text_indexes"],
                packed_position_ids=recorded["packed_position_ids"],
                packed_vit_tokens=recorded.get("packed_vit_tokens"),
                packed_vit_token_indexes=recorded.get("packed_vit_token_indexes", empty),
                packed_vit_position_ids=recorded.get("packed_vit_position_ids", empty),
                vit_token_seqlens=recorded.get("vit_token_seqlens", empty).tolist(),
                packed_vae_token_indexes=recorded["packed_vae_token_indexes"],
                packed_latent_position_ids=recorded["packed_latent_position_ids"],
                patchified_vae_latent_shapes=shapes,
                target_tasks=[RECA] * len(shapes),
                ce_loss_indexes=recorded.get("ce_loss_indexes", empty),
                packed_label_ids=recorded.get("packed_label_ids", empty),
            )
            batch = make_batch(packed)
        except ValueError as error:
            raise UserError(f"{self.folder} holds a pack that RECA training never makes: {error}.") from None
        first_token = torch.searchsorted(batch.target_index, torch.arange(len(shapes)))
        normal = recorded["packed_timesteps"][first_token].to(dtype)
        timesteps = shifted_logit_normal(normal, self.config.glue.timestep_shift)
        draws = Draws(timesteps, noise_seed=0, noise=recorded["noise"].to(dtype))
        return replace(batch, latents=self.latents().to(dtype), draws=draws)

    def latents(self) -> Tensor:
        """The recorded latents as tokens [G, C]. In the case, each lies in the top left corner of a larger canvas."""
        patch = self.config.glue.latent_patch_size
        shapes = self.inputs["patchified_vae_latent_shapes"].tolist()
        pictures = zip(self.inputs["padded_latent"], shapes, strict=True)
        return torch.cat(
            [patchify_latents(z[:, : rows * patch, : columns * patch], patch) for z, (rows, columns) in pictures]
        )

    def expected(self) -> dict[str, Tensor]:
        """Every recorded tensor that `replay` computes again, under the same name; none if only inputs were recorded.

        Numbers in expected.json are 0-d fp64 tensors under `scalar/<path>`.
        """
        out = {
            name: tensor
            for name, tensor in self.inputs.items()
            if "image.0.uint8_hwc" in self.inputs
            and (name.endswith(("vae_tensor", "vit_tensor")) or name == "packed_vit_tokens")
        }
        if "vae_posterior_noise" in self.inputs and (self.folder / "ae.safetensors").exists():
            out["padded_latent"] = self.inputs["padded_latent"]
        for variant in self.variants:
            out |= expected_tensors(self.folder, variant)
        return out

    def tolerance(self, name: str, dtype: torch.dtype) -> float:
        """Largest allowed difference, as a share of the largest entry of the recorded tensor.

        In fp32 it leaves room for another order of additions alone, in bf16 for the rounding of that dtype.
        """
        if dtype is torch.bfloat16:
            return 0.1 if "grad" in name else 0.05
        if name.endswith(("vae_tensor", "vit_tensor", "packed_vit_tokens")):
            return 0.0  # the resize is Pillow's to the last bit
        return 1e-6 if "scalar/" in name and "grad" not in name else 1e-5
