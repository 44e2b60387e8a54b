"""Replay of a parity case: recorded inputs -> every tensor that the authors' code produced, through the training code
path.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reca_fast.config import LossWeights, Pixels, ResizeConfig
from reca_fast.errors import UserError
from reca_fast.flow import I2T, RECA
from reca_fast.kernels import choose_backend, flow_interpolate, flow_matching_loss
from reca_fast.models.files import uniform
from reca_fast.models.files.folder import read_object
from reca_fast.models.parts.kl_vae import read_kl_vae
from reca_fast.objectives import flow_loss_by_task, next_token_loss, shifted_logit_normal, weighted_loss
from reca_fast.schema import fill

from .batch import BagelBatch, PackedSequence, make_batch
from .case_inputs import read_inputs, read_tensors
from .config import BagelConfig
from .latent_tokens import patchify_latents
from .model import Bagel, Trace
from .names import NAMES
from .weights import fill_bagel, weights_file

JOINT = "joint"  # the second run of a case: nothing frozen but the vision tower, cross-entropy added


@dataclass(frozen=True)
class RecordedResize:
    """How a case's pictures were resized, under the authors' names."""

    max_image_size: Pixels
    min_image_size: Pixels
    image_stride: Pixels


@dataclass(frozen=True)
class Case:
    """A case folder, read."""

    folder: Path
    config: BagelConfig
    raw: dict[str, Any]
    inputs: dict[str, Tensor]

    @property
    def runs(self) -> list[str]:
        """ "" for the plain run, then the named ones."""
        named = {path.stem.removeprefix("expected_") for path in self.folder.glob("expected_*.safetensors")}
        return ["", *sorted(named | ({JOINT} if self.raw.get("has_joint_run") else set()))]


def read_case(folder: Path) -> Case:
    """Read config.json and inputs.safetensors; UserError when one is missing or damaged."""
    raw = read_object(folder / "config.json")
    inputs = read_inputs(folder / "inputs.safetensors")
    return Case(folder, BagelConfig.from_dict(raw, str(folder / "config.json")), raw, inputs)


def case_batch(case: Case) -> BagelBatch:
    """The recorded pack. A case without ViT tokens or without labels simply lacks those tensors."""
    recorded, empty = case.inputs, torch.zeros(0, dtype=torch.int64)
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
        return make_batch(packed)
    except ValueError as error:
        raise UserError(f"{case.folder} holds a pack that RECA training never makes: {error}.") from None


def case_latents(case: Case) -> Tensor:
    """Latent tokens [G, C] cut out of the padded canvas."""
    patch = case.config.glue.latent_patch_size
    shapes = case.inputs["patchified_vae_latent_shapes"].tolist()
    pictures = zip(case.inputs["padded_latent"], shapes, strict=True)
    return torch.cat(
        [patchify_latents(z[:, : rows * patch, : columns * patch], patch) for z, (rows, columns) in pictures]
    )


def _packed(batch: BagelBatch, und: Tensor, gen: Tensor) -> Tensor:
    """Two streams -> the packed order of the authors."""
    out = und.new_empty(len(batch.und_rows) + len(batch.gen_rows), und.shape[-1])
    out[batch.und_rows], out[batch.gen_rows] = und, gen
    return out


def replay_pictures(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """From raw pixels (when recorded): both resizes bit for bit, the ViT patches, the VAE's moments and sampled
    latents.
    """
    from reca_fast.data.images import patchify, resize, target_size, to_model_range

    out: dict[str, Tensor] = {}
    count = len(case.inputs["patchified_vae_latent_shapes"])
    if "image.0.uint8_hwc" not in case.inputs:
        return out
    targets, patches = [], []
    for i in range(count):
        picture = case.inputs[f"image.{i}.uint8_hwc"]
        size = (picture.shape[1], picture.shape[0])
        for kind, key in (("vae", "image_transform_args"), ("vit", "vit_image_transform_args")):
            rule = fill(RecordedResize, case.raw.get(key), f"{key} of {case.folder / 'config.json'}")
            limits = ResizeConfig(rule.max_image_size, rule.min_image_size, rule.image_stride)
            resized = resize(picture, target_size(*size, limits), "exact")
            out[f"image.{i}.{kind}_tensor"] = to_model_range(resized, torch.float32)
            if kind == "vit":
                patches.append(patchify(resized, case.config.vit.patch_size, torch.float32))
        targets.append(out[f"image.{i}.vae_tensor"])
    out["packed_vit_tokens"] = torch.cat(patches)
    weights = case.folder / "ae.safetensors"
    if not weights.exists():
        return out
    # The authors encode all target pictures of a pack on one canvas, padded with mid grey.
    height, width = (max(t.shape[side] for t in targets) for side in (1, 2))
    canvas = torch.zeros(count, 3, height, width, dtype=dtype)
    for i, target in enumerate(targets):
        canvas[i, :, : target.shape[1], : target.shape[2]] = target
    vae = read_kl_vae(weights, case.config.vae, device="cpu", dtype=dtype)
    with torch.no_grad():
        out["vae_moments"] = vae.moments(canvas)
        if "vae_posterior_noise" in case.inputs:
            out["padded_latent"] = vae.sample(out["vae_moments"], case.inputs["vae_posterior_noise"].to(dtype))
    return out


def replay(case: Case, run: str, *, attention: str, dtype: torch.dtype, weights: Path | None) -> dict[str, Tensor]:
    """One run of a case on the CPU: intermediates, losses, `grad.<parameter>`, and scalars as `scalar/<path>`."""
    joint = run == JOINT
    with torch.device("meta"):
        model = Bagel(case.config, freeze_und=not joint, attention=choose_backend(attention, "cpu", dtype))
    path = case.folder / "weights.safetensors" if weights is None else weights
    path = weights_file(path) if path.is_dir() else path
    fill_bagel(model, path, uniform(dtype, "cpu"))

    batch = case_batch(case)
    noise, latents = case.inputs["noise"].to(dtype), case_latents(case).to(dtype)
    first_token = torch.searchsorted(batch.image_index, torch.arange(len(batch.latent_shapes)))
    normal = case.inputs["packed_timesteps"][first_token].to(dtype)
    timesteps = shifted_logit_normal(normal, case.config.glue.timestep_shift)
    token_times = timesteps[batch.image_index]
    x_t = flow_interpolate(latents, token_times, noise=noise)

    trace = Trace()
    prediction = model(batch, x_t, timesteps, trace=trace)
    sums = flow_loss_by_task(
        prediction.velocity, latents, timesteps, batch.image_index, batch.target_tasks, noise=noise
    )
    out = {
        "llm_input": _packed(batch, trace["input_und"], trace["input_gen"]),
        "layer0_out": _packed(batch, trace["layer0_und"], trace["layer0_gen"]),
        "last_hidden": _packed(batch, trace["last_und"], trace["last_gen"]),
        "last_hidden_gen": trace["last_gen"],
        "mse_elementwise": (prediction.velocity - (noise - latents)).square(),
        "mse_per_token": flow_matching_loss(prediction.velocity, latents, token_times, noise=noise, reduction="none"),
        "t_after_shift": token_times,
        "timestep_embed": trace["timestep_embed"],
        "velocity_pred": prediction.velocity,
        "x_t": x_t,
    }
    if "vit_out" in trace:
        out["vit_out"] = trace["vit_out"]
    counts = batch.counts
    out["scalar/mse"] = sums[RECA] / counts[RECA]
    if joint and batch.labels is not None:
        out["ce_per_token"] = next_token_loss(prediction.und[batch.label_rows], model.lm_head.weight, batch.labels)
        sums[I2T] = out["ce_per_token"].sum()
        out["scalar/ce"] = sums[I2T] / counts[I2T]
    loss = weighted_loss(sums, counts, LossWeights(reca=1.0, i2t=1.0))
    loss.backward()
    out["scalar/loss"] = loss
    gradients = {f"grad.{NAMES.key(n)}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    out["scalar/grad_norm_all"] = torch.nn.utils.get_total_norm(list(gradients.values()))
    return {name: tensor.detach() for name, tensor in (out | gradients).items()}


def replay_all(case: Case, *, attention: str, dtype: torch.dtype, weights: Path | None) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of every run, named as in the expected files (`<run>/<name>` for named runs)."""
    yield from replay_pictures(case, dtype).items()
    for run in case.runs:
        prefix = f"{run}/" if run else ""
        for name, tensor in replay(case, run, attention=attention, dtype=dtype, weights=weights).items():
            yield prefix + name, tensor


def expected(case: Case) -> dict[str, Tensor]:
    """What the case's expected files (and its recorded pictures) say, under the names of `replay_all`. May be empty."""
    out = {
        name: tensor
        for name, tensor in case.inputs.items()
        if "image.0.uint8_hwc" in case.inputs
        and (name.endswith(("vae_tensor", "vit_tensor")) or name == "packed_vit_tokens")
    }
    if "vae_posterior_noise" in case.inputs and (case.folder / "ae.safetensors").exists():
        out["padded_latent"] = case.inputs["padded_latent"]
    for run in case.runs:
        stem, prefix = (f"expected_{run}", f"{run}/") if run else ("expected", "")
        tensors, scalars = case.folder / f"{stem}.safetensors", case.folder / f"{stem}.json"
        if tensors.exists():
            out |= {prefix + key: tensor for key, tensor in read_tensors(tensors).items()}
        if scalars.exists():
            out |= {f"{prefix}scalar/{path}": value for path, value in _scalars(read_object(scalars))}
    return out


def _scalars(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Numbers whose path ends in a loss or a gradient norm, or lies under `losses`."""
    for key, value in values.items():
        here = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from _scalars(value, here)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and _is_scalar(here.split(".")):
            yield here, torch.tensor(value, dtype=torch.float64)


def _is_scalar(path: list[str]) -> bool:
    return path[-1] in ("loss", "mse", "ce", "grad_norm", "grad_norm_all") or "losses" in path[:-1]


def tolerance(name: str, dtype: torch.dtype) -> float:
    """Largest error relative to the tensor's largest entry: the cases' READMEs for fp32, rounding of the dtype for
    bf16.
    """
    if dtype is torch.bfloat16:
        return 0.1 if "grad" in name else 0.05
    if name.endswith(("vae_tensor", "vit_tensor", "packed_vit_tokens")):
        return 0.0  # the resize is Pillow's to the last bit
    return 1e-6 if "scalar/" in name and "grad" not in name else 1e-5
