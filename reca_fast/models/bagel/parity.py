"""Replay of a parity case: recorded inputs -> every tensor that the authors' code produced, through the training code
path.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reca_fast.config import Attention, LossWeights, ModelConfig, Pixels, ResizeConfig
from reca_fast.errors import UserError
from reca_fast.kernels import choose_backend, flow_matching_loss
from reca_fast.models.files import uniform
from reca_fast.models.files.folder import read_object
from reca_fast.models.parts.kl_vae import read_kl_vae
from reca_fast.objectives import next_token_loss, shifted_logit_normal, weighted_loss
from reca_fast.sample import I2T, RECA
from reca_fast.schema import fill

from .adapter import BagelAdapter
from .batch import BagelBatch, Draws, PackedSequence, make_batch
from .case_inputs import read_inputs, read_tensors
from .config import BagelConfig
from .latent_tokens import patchify_latents
from .model import Bagel
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


def case_batch(case: Case, dtype: torch.dtype = torch.float32) -> BagelBatch:
    """The recorded pack as a batch of training: latents and every draw of the step are the recorded ones, in `dtype`.

    A case without ViT tokens or without labels simply lacks those tensors.
    """
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
        batch = make_batch(packed)
    except ValueError as error:
        raise UserError(f"{case.folder} holds a pack that RECA training never makes: {error}.") from None
    first_token = torch.searchsorted(batch.image_index, torch.arange(len(shapes)))
    normal = recorded["packed_timesteps"][first_token].to(dtype)
    timesteps = shifted_logit_normal(normal, case.config.glue.timestep_shift)
    draws = Draws(timesteps, noise_seed=0, noise=recorded["noise"].to(dtype))
    return replace(batch, latents=case_latents(case).to(dtype), draws=draws)


def case_latents(case: Case) -> Tensor:
    """Latent tokens [G, C] cut out of the padded canvas."""
    patch = case.config.glue.latent_patch_size
    shapes = case.inputs["patchified_vae_latent_shapes"].tolist()
    pictures = zip(case.inputs["padded_latent"], shapes, strict=True)
    return torch.cat(
        [patchify_latents(z[:, : rows * patch, : columns * patch], patch) for z, (rows, columns) in pictures]
    )


def replay_pictures(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """From raw pixels (when recorded): both resizes bit for bit, the ViT patches, the VAE's moments and sampled
    latents.
    """
    from reca_fast.data.images import fitted_size, patchify, resize, to_model_range

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
            resized = resize(picture, fitted_size(*size, limits), "exact")
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


class Recorder:
    """What the modules of a `Bagel` take and give while a batch goes through, under the names of the parity cases.

    A context manager: its forward hooks are gone when it ends.
    """

    def __init__(self, model: Bagel, batch: BagelBatch) -> None:
        self._model, self._batch = model, batch
        self._hooks: list[RemovableHandle] = []
        self.seen: dict[str, Tensor] = {}

    def __enter__(self) -> dict[str, Tensor]:
        model, first = self._model, self._model.layers[0]
        self._before(first, lambda und, gen, *_: self._keep("llm_input", und.hidden_states, gen.hidden_states))
        # Training leaves out what nobody reads: the last layer's understanding rows without cross-entropy.
        ask = model.layers[-1].register_forward_pre_hook(lambda _, args: (*args[:6], True))
        self._hooks.append(ask)
        self._after(first, lambda out: self._keep("layer0_out", out[0], out[1]))
        self._after(model.norm_gen, lambda out: self.seen.update(last_hidden_gen=out))
        self._after(model.norm, lambda out: self._keep("last_hidden", out, self.seen["last_hidden_gen"]))
        self._after(model.vit, lambda out: self.seen.update(vit_out=out))
        time_of_token = self._batch.image_index
        self._after(model.time_embedder, lambda out: self.seen.update(timestep_embed=out[time_of_token]))
        self._before(model.vae2llm, lambda x_t: self.seen.update(x_t=x_t))
        self._after(model.llm2vae, lambda out: self.seen.update(velocity_pred=out))
        return self.seen

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, module: nn.Module, see: Callable[..., None]) -> None:
        self._hooks.append(module.register_forward_pre_hook(lambda _, args: see(*args)))

    def _after(self, module: nn.Module, see: Callable[[Any], None]) -> None:
        self._hooks.append(module.register_forward_hook(lambda _, args, out: see(out)))

    def _keep(self, name: str, und: Tensor, gen: Tensor) -> None:
        """Two streams in the packed order of the authors."""
        batch = self._batch
        out = und.new_empty(len(batch.und_rows) + len(batch.gen_rows), und.shape[-1])
        out[batch.und_rows], out[batch.gen_rows] = und, gen
        self.seen[name] = out


def replay(
    case: Case, run: str, *, attention: Attention, dtype: torch.dtype, weights: Path | None
) -> dict[str, Tensor]:
    """One run of a case on the CPU: intermediates, losses, `grad.<parameter>`, and scalars as `scalar/<path>`."""
    joint = run == JOINT
    model = BagelAdapter(case.config, ModelConfig(attention=attention, freeze_und=not joint))
    model.dtype = dtype
    path = case.folder / "weights.safetensors" if weights is None else weights
    path = weights_file(path) if path.is_dir() else path
    model.module.attention = choose_backend(attention, "cpu", dtype)
    fill_bagel(model.module, path, uniform(dtype, "cpu"))

    batch = case_batch(case, dtype)
    with Recorder(model.module, batch) as out:
        sums = model.loss_sums(model.encode(batch))
    weighted_loss(sums, batch.counts, LossWeights(reca=1.0, i2t=1.0)).backward()

    draws, latents, velocity = batch.draws, batch.latents, out["velocity_pred"]
    assert draws is not None and draws.noise is not None and latents is not None
    times = draws.timesteps[batch.image_index]
    out["t_after_shift"] = times
    out["mse_elementwise"] = (velocity - (draws.noise - latents)).square()
    out["mse_per_token"] = flow_matching_loss(velocity, latents, times, noise=draws.noise, reduction="none")
    means = {task: total / max(1, batch.counts[task]) for task, total in sums.items()}
    out["scalar/mse"] = means[RECA]
    if batch.labels is not None and joint:
        und = out["last_hidden"][batch.und_rows][batch.label_rows]
        out["ce_per_token"] = next_token_loss(und, model.module.lm_head.weight, batch.labels)
        out["scalar/ce"] = means[I2T]
    out["scalar/loss"] = torch.stack(list(means.values())).sum()
    gradients = {f"grad.{NAMES.key(n)}": p.grad for n, p in model.module.named_parameters() if p.grad is not None}
    out["scalar/grad_norm_all"] = torch.nn.utils.get_total_norm(list(gradients.values()))
    return {name: tensor.detach() for name, tensor in (out | gradients).items()}


def replay_all(
    case: Case, *, attention: Attention, dtype: torch.dtype, weights: Path | None
) -> Iterator[tuple[str, Tensor]]:
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
