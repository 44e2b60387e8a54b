"""A parity case computed again: its batch goes through `OpenUniModel.loss_sums`, while forward hooks note the tensors
inside.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reca_fast.config import Attention, LossWeights, ModelConfig
from reca_fast.errors import UserError
from reca_fast.kernels import flow_interpolate, flow_matching_loss
from reca_fast.models.files import uniform
from reca_fast.objectives import weighted_loss

from ..batch import TIMES, OpenUniBatch, to_pictures
from ..config import OpenUniConfig
from ..names import NETWORK_NAMES
from ..network import OpenUni
from ..tokenizer import PUBLISHED_TOKENS, OpenUniTokenizer
from .case import RecordedCase

Build = Callable[[OpenUniConfig, ModelConfig, OpenUniTokenizer], Any]
"""Makes the model to be replayed: `OpenUniModel`, which opens cases and is therefore not imported here."""


@dataclass(frozen=True)
class OpenUniCase:
    """A recorded case and the model that replays it, as `reca_fast.models.protocol.Case` wants them."""

    recorded: RecordedCase
    build: Build

    def replay(self, *, attention: Attention, dtype: torch.dtype, weights: Path | None) -> Iterator[tuple[str, Tensor]]:
        """Train one step on the case, on the CPU, and give every tensor that it records. Gradients are called
        `grad.<name in the authors' file>`, and single numbers `scalar/<path in expected.json>`.
        """
        case = self.recorded
        path = (case.folder / "weights.safetensors" if weights is None else weights).absolute()
        if not path.exists():
            raise UserError(f"{path} is missing; name a file of weights or a checkpoint folder.")
        where: dict[str, Any] = {"path": str(path)} if path.is_dir() else {"weights": str(path)}
        model = self.build(case.config, ModelConfig(attention=attention, **where), PUBLISHED_TOKENS)
        model.dtype = dtype
        model.fill(uniform(dtype, "cpu"))
        model.fill_encoders(torch.device("cpu"))

        batch = model.encode(case.batch(dtype))
        with recorded_inside(model.module) as seen:
            sums = model.loss_sums(batch)
        weighted_loss(sums, batch.counts, LossWeights(**dict.fromkeys(sums, 1.0))).backward()
        (total,), (count,) = sums.values(), batch.counts.values()
        loss = total / count
        out = prompts(case, model.module, batch) | inside(case, batch, seen)
        out |= {"loss": loss[None].clone(), "scalar/loss": loss}
        gradients = {}
        for name, parameter in model.module.named_parameters():
            if parameter.grad is not None:
                shape = NETWORK_NAMES.stored_shape(name, parameter.shape)
                gradients[f"grad.{NETWORK_NAMES.key(name)}"] = parameter.grad.view(shape)
        out["scalar/grad_norm"] = torch.nn.utils.get_total_norm(list(gradients.values()))
        yield from ((name, tensor.detach()) for name, tensor in (out | gradients).items())

    def expected(self) -> dict[str, Tensor]:
        return self.recorded.expected()

    def tolerance(self, name: str, dtype: torch.dtype) -> float:
        return self.recorded.tolerance(name, dtype)


@contextmanager
def recorded_inside(module: OpenUni) -> Iterator[dict[str, Tensor]]:
    """A context that gives a dict, which is filled while a batch goes through the network."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.decoder.register_forward_hook(lambda _, args, out: seen.update(llm_query_hidden=out[0])),
        module.connector.layers[-1].register_forward_hook(lambda _, args, out: seen.update(connector_output=out)),
        module.sana.register_forward_pre_hook(
            lambda _, args: seen.update(noisy_latents=args[0], prompt_embeds=args[1])
        ),
        module.sana.register_forward_hook(lambda _, args, out: seen.update(model_pred=out)),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def prompts(case: RecordedCase, module: OpenUni, batch: OpenUniBatch) -> dict[str, Tensor]:
    """What goes into the language model, in the authors' padded form: prompts with their padding, then the queries."""
    ids, mask = case.inputs["input_ids"], case.inputs["attention_mask"].bool()
    weight = module.decoder.norm.weight
    rows = module.embed_tokens(ids.flatten(), weight.device, weight.dtype).unflatten(0, ids.shape)
    rows[mask] = module.embed_prompts(batch)
    queries = module.meta_queries.detach().expand(len(ids), -1, -1)
    whole = torch.cat((mask, mask.new_ones(len(ids), queries.shape[1])), dim=1)
    out = {
        "llm_inputs_embeds": torch.cat((rows, queries), dim=1),
        "llm_attention_mask": whole.to(torch.uint8),
        "llm_position_ids": (whole.long().cumsum(1) - 1).clamp(min=0),
    }
    if batch.features is not None:
        out["vit_embeds"] = batch.features.unflatten(0, (-1, case.config.picture_tokens))
    return out


def inside(case: RecordedCase, batch: OpenUniBatch, seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """What was seen in the network, in the authors' shapes, and the losses of the samples."""
    draws, latents, samples = batch.draws, batch.latents, len(batch.target_tasks)
    assert draws is not None and draws.noise is not None and latents is not None
    shape = (batch.groups[0].rows, batch.groups[0].columns)
    out = {
        name: seen[name].unflatten(0, (samples, -1))
        for name in ("llm_query_hidden", "connector_output", "prompt_embeds")
    }
    cells = {
        "image_latents": latents,
        "noisy_latents": flow_interpolate(latents, (draws.timesteps / TIMES)[batch.target_index], noise=draws.noise),
        "target": draws.noise - latents,
        "model_pred": seen["model_pred"],
    }
    for name, packed in cells.items():
        out[name] = to_pictures(packed, *shape)
    times = (draws.timesteps / TIMES)[batch.target_index]
    losses = flow_matching_loss(seen["model_pred"], latents, times, noise=draws.noise, reduction="none")
    return out | {"per_sample_loss": losses.unflatten(0, (samples, -1)).mean(1)}
