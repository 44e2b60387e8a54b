"""A parity case computed again: its batch goes through `BagelModel.loss_sums`, while forward hooks note the tensors
inside.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reca_fast.config import Attention, LossWeights, ModelConfig, Pixels, ResizeConfig
from reca_fast.data.images import fitted_size, patchify, resize, to_model_range
from reca_fast.errors import UserError
from reca_fast.kernels import flow_matching_loss
from reca_fast.models.files import uniform
from reca_fast.models.parts.kl_vae import read_kl_vae
from reca_fast.objectives import next_token_loss, weighted_loss
from reca_fast.sample import I2T, RECA
from reca_fast.schema import from_dict

from ..batch import BagelBatch
from ..config import BagelConfig
from ..names import NETWORK_NAMES
from ..network import Bagel
from ..weights import weights_file
from .case import JOINT, RecordedCase


@dataclass(frozen=True)
class RecordedResize:
    """Limits of the sides of a resized picture, in pixels, under the names that a case's config.json uses."""

    max_image_size: Pixels
    min_image_size: Pixels
    image_stride: Pixels


def replay_pictures(case: RecordedCase, dtype: torch.dtype) -> dict[str, Tensor]:
    """What comes before the decoder, where the case holds the pixels of its pictures; otherwise nothing.

    These are both resized pictures, the patches of the ViT and, with the VAE's weights, its moments and latents.
    """

    out: dict[str, Tensor] = {}
    count = len(case.inputs["patchified_vae_latent_shapes"])
    if "image.0.uint8_hwc" not in case.inputs:
        return out
    targets, patches = [], []
    for i in range(count):
        picture = case.inputs[f"image.{i}.uint8_hwc"]
        size = (picture.shape[1], picture.shape[0])
        for kind, key in (("vae", "image_transform_args"), ("vit", "vit_image_transform_args")):
            rule = from_dict(RecordedResize, case.raw.get(key), f"{key} of {case.folder / 'config.json'}")
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
    # The authors encode all targets of a pack on one canvas, padded with mid grey.
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
    """Notes what goes into and comes out of the modules of a `Bagel`, under the names of the parity cases.

    It is a context manager that gives the dict of tensors, which is filled while a batch goes through the model. Its
    forward hooks are removed at the end.

    Args:
        model: the network.
        batch: the batch that will go through it.
    """

    def __init__(self, model: Bagel, batch: BagelBatch) -> None:
        self._model, self._batch = model, batch
        self._hooks: list[RemovableHandle] = []
        self.seen: dict[str, Tensor] = {}

    def __enter__(self) -> dict[str, Tensor]:
        model, first = self._model, self._model.layers[0]
        self._before(first, lambda und, gen, *_: self._keep("llm_input", und.hidden_states, gen.hidden_states))
        # Without labels, training does not compute the understanding rows of the last layer. Here they are compared.
        ask = model.layers[-1].register_forward_pre_hook(lambda _, args: (*args[:6], True))
        self._hooks.append(ask)
        self._after(first, lambda out: self._keep("layer0_out", out[0], out[1]))
        self._after(model.norm_gen, lambda out: self.seen.update(last_hidden_gen=out))
        self._after(model.norm, lambda out: self._keep("last_hidden", out, self.seen["last_hidden_gen"]))
        time_of_token = self._batch.target_index
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
        """Note two streams as one tensor, their rows in the order of the packed sequence."""
        batch = self._batch
        out = und.new_empty(len(batch.und_rows) + len(batch.gen_rows), und.shape[-1])
        out[batch.und_rows], out[batch.gen_rows] = und, gen
        self.seen[name] = out


Build = Callable[[BagelConfig, ModelConfig], Any]
"""Makes the model to be replayed: `BagelModel`, which opens cases and is therefore not imported here."""


@dataclass(frozen=True)
class BagelCase:
    """A recorded case and the model that replays it, as `reca_fast.models.protocol.Case` wants them."""

    recorded: RecordedCase
    build: Build

    def replay(self, *, attention: Attention, dtype: torch.dtype, weights: Path | None) -> Iterator[tuple[str, Tensor]]:
        """Compute every tensor of every variant, on the CPU, under the names that `expected` gives them."""
        yield from replay_pictures(self.recorded, dtype).items()
        for variant in self.recorded.variants:
            prefix = f"{variant}/" if variant else ""
            how: dict[str, Any] = {"attention": attention, "dtype": dtype, "weights": weights}
            computed = replay_variant(self.recorded, variant, self.build, **how)
            yield from ((prefix + name, tensor) for name, tensor in computed.items())

    def expected(self) -> dict[str, Tensor]:
        return self.recorded.expected()

    def tolerance(self, name: str, dtype: torch.dtype) -> float:
        return self.recorded.tolerance(name, dtype)


def replay_variant(
    case: RecordedCase,
    variant: str,
    build: Build,
    *,
    attention: Attention,
    dtype: torch.dtype,
    weights: Path | None,
) -> dict[str, Tensor]:
    """Train one step on one variant of a case, on the CPU, and give every tensor that the cases record.

    Gradients are called `grad.<name in the authors' file>`, and single numbers `scalar/<path in expected.json>`. The
    arguments are those of `BagelCase.replay`.
    """
    joint = variant == JOINT
    path = case.folder / "weights.safetensors" if weights is None else weights
    path = (weights_file(path) if path.is_dir() else path).absolute()
    if not path.exists():
        raise UserError(f"{path} is missing; name a file of weights or a checkpoint folder.")
    options = ModelConfig(weights=str(path), attention=attention, freeze_und=not joint)
    model = build(case.config, options)
    model.dtype = dtype
    with torch.device("meta"):
        model.module = Bagel(case.config, freeze_und=not joint, whole=True)
    model.fill(uniform(dtype, "cpu"))
    model.encoders.fill_vit(path, dtype, "cpu")

    batch = model.encode(case.batch(dtype))
    with Recorder(model.module, batch) as out:
        sums = model.loss_sums(batch)
    weighted_loss(sums, batch.counts, LossWeights(reca=1.0, i2t=1.0)).backward()

    draws, latents, velocity = batch.draws, batch.latents, out["velocity_pred"]
    assert draws is not None and draws.noise is not None and latents is not None
    times = draws.timesteps[batch.target_index]
    out["t_after_shift"] = times
    if batch.features is not None:
        out["vit_out"] = batch.features
    out["mse_elementwise"] = (velocity - (draws.noise - latents)).square()
    out["mse_per_token"] = flow_matching_loss(velocity, latents, times, noise=draws.noise, reduction="none")
    means = {task: total / max(1, batch.counts[task]) for task, total in sums.items()}
    out["scalar/mse"] = means[RECA]
    if batch.labels is not None and joint:
        und = out["last_hidden"][batch.und_rows][batch.label_rows]
        out["ce_per_token"] = next_token_loss(und, model.module.lm_head.weight, batch.labels)
        out["scalar/ce"] = means[I2T]
    out["scalar/loss"] = torch.stack(list(means.values())).sum()
    gradients = {
        f"grad.{NETWORK_NAMES.key(n)}": p.grad for n, p in model.module.named_parameters() if p.grad is not None
    }
    out["scalar/grad_norm_all"] = torch.nn.utils.get_total_norm(list(gradients.values()))
    return {name: tensor.detach() for name, tensor in (out | gradients).items()}
