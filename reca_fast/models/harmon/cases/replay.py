"""A parity case computed again: its batches go through `HarmonModel.loss_sums` and its own sampling, while forward
hooks note the tensors inside.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reca_fast.config import Attention, LossWeights, ModelConfig
from reca_fast.errors import UserError
from reca_fast.kernels import mar_diffusion_loss, mar_noise
from reca_fast.models.files import uniform
from reca_fast.models.recorded import recorded_tensor
from reca_fast.objectives import weighted_loss

from ..batch import HarmonBatch
from ..config import HarmonConfig
from ..names import NETWORK_NAMES
from ..network import Harmon
from ..sampling import sample_latents
from ..weights import holds_vae, weights_file
from .case import SEEN, TASKS, RecordedCase

Build = Callable[[HarmonConfig, ModelConfig], Any]
"""Makes the model to be replayed: `HarmonModel`, which opens cases and is therefore not imported here."""


@dataclass(frozen=True)
class HarmonCase:
    """A recorded case and the model that replays it, as `reca_fast.models.protocol.Case` wants them."""

    recorded: RecordedCase
    build: Build

    def replay(self, *, attention: Attention, dtype: torch.dtype, weights: Path | None) -> Iterator[tuple[str, Tensor]]:
        """Compute every tensor of every task, and the recorded pictures, on the CPU."""
        case = self.recorded
        path = case.folder / "weights.safetensors" if weights is None else weights
        path = (weights_file(path) if path.is_dir() else path).absolute()
        if not path.exists():
            raise UserError(f"{path} is missing; name a file of weights or a checkpoint folder.")
        model = self.build(case.config, ModelConfig(path=str(case.folder), weights=str(path), attention=attention))
        model.dtype = dtype
        model.fill(uniform(dtype, "cpu"))

        raw = case.inputs.get("raw_latents")
        if raw is None or holds_vae(path):
            model.encoders.fill(case.folder, path, "cpu")
        if raw is None:
            with torch.no_grad():
                raw = model.encoders.vae.moments(case.inputs["pixel_values"]).chunk(2, dim=1)[0]
            yield "vae.raw_latents", raw
        latents = case.latents(raw).to(dtype)
        yield "latent_tokens", latents
        for task in case.tasks:
            yield from replay_task(case, task, model, latents)
        yield from replay_pictures(case, model, latents)

    def expected(self) -> dict[str, Tensor]:
        return self.recorded.expected()

    def tolerance(self, name: str, dtype: torch.dtype) -> float:
        return self.recorded.tolerance(name, dtype)


class Recorder:
    """Notes what goes into and comes out of the modules of a `Harmon`, under the names of the parity cases.

    It is a context manager that gives the dict of tensors, which is filled while a batch goes through the model. Its
    forward hooks are removed at the end.

    Args:
        model: the network.
        batch: the batch that will go through it.
        seen: whether its samples have conditions.
    """

    def __init__(self, model: Harmon, batch: HarmonBatch, *, seen: bool) -> None:
        self._model, self._batch, self._seen = model, batch, seen
        self._hooks: list[RemovableHandle] = []
        self.seen: dict[str, Tensor] = {}

    def __enter__(self) -> dict[str, Tensor]:
        model = self._model
        self._after(model.mar.encoder_norm, lambda out: self._keep_passes("enc_full", "enc_visible", out))
        self._after(model.proj_in, lambda out: self._keep_passes("cond_embeds", "proj_visible", out, last=True))
        self._after(model.llm.norm, self._keep_tail)
        self._before(model.mar.decoder_embed, lambda rows: self._keep_rows("enc_fused", rows))
        return self.seen

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, module: nn.Module, see: Callable[..., None]) -> None:
        self._hooks.append(module.register_forward_pre_hook(lambda _, args: see(*args)))

    def _after(self, module: nn.Module, see: Callable[[Any], None]) -> None:
        self._hooks.append(module.register_forward_hook(lambda _, args, out: see(out)))

    def _keep_passes(self, condition: str, masked: str, rows: Tensor, *, last: bool = False) -> None:
        """Note the rows of both passes of the encoder, buffers first or last."""
        first = self._batch.encoder.condition_rows
        for name, part in ((condition, rows[:first]), (masked, rows[first:])):
            self._keep_rows(name, part, turned=last)

    def _keep_tail(self, asked: Tensor) -> None:
        """Note the rows of the masked pass behind the language model, buffers last."""
        if len(self._batch.language.seen):
            self._keep_rows("llm_hidden_tail", asked.index_select(0, self._batch.language.seen), turned=True)

    def _keep_rows(self, name: str, rows: Tensor, *, turned: bool = False) -> None:
        """Note rows [B * n, D] of B samples as [B, n, D]; `turned` puts the buffers behind the tokens."""
        if not len(rows):
            return
        samples = len(self._batch.language.view.segments.cu_seqlens_q) - 1
        by_sample, buffers = rows.unflatten(0, (samples, -1)), self._model.config.mar.buffer_size
        self.seen[name] = torch.cat((by_sample[:, buffers:], by_sample[:, :buffers]), 1) if turned else by_sample


def replay_task(case: RecordedCase, task: str, model: Any, latents: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Train one step on one task of a case, on the CPU, and give every tensor that the cases record of it.

    Args:
        case: the case.
        task: as the authors call it.
        model: a `HarmonModel` with weights.
        latents: [B, L, C] in the dtype of the arithmetic.
    """
    module: Harmon = model.module
    module.zero_grad()
    batch = case.batch(task, latents)
    with Recorder(module, batch, seen=task in SEEN) as out:
        sums = model.loss_sums(batch)
    loss = weighted_loss(sums, batch.counts, LossWeights(reca=1.0, t2i=1.0, i2t=1.0))
    loss.backward()
    out["loss"] = loss.view(1)
    if not TASKS[task]:
        del out["enc_full"], out["cond_embeds"]  # the same as those of recon
        out["label_logits"] = _label_logits(module, batch)
    else:
        out["position_ids"] = _padded_positions(case, task, batch)
        out |= _every_row(case, task, model, latents)
    gradients = {
        f"grad.{NETWORK_NAMES.key(name)}": p.grad for name, p in module.named_parameters() if p.grad is not None
    }
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    # Copies: some of them are parts of others, which a file cannot hold.
    yield from ((f"{task}.{name}", tensor.detach().clone()) for name, tensor in (out | gradients).items())
    yield f"scalar/{task}.loss", loss.detach()
    yield f"scalar/{task}.grad_norm", norm


@torch.no_grad()
def _label_logits(module: Harmon, batch: HarmonBatch) -> Tensor:
    """Logits [labels, vocabulary] at the supervised positions. Training never holds them."""
    assert batch.latents is not None
    said = module(batch, batch.latents, batch.latents[:0]).said
    return F.linear(said, module.llm.embed_tokens.weight)


@torch.no_grad()
def _every_row(case: RecordedCase, task: str, model: Any, latents: Tensor) -> dict[str, Tensor]:
    """What the denoiser says of all tokens, also of the visible ones, which training leaves out: z [B, L, Dd], and the
    losses of all rows.
    """
    batch = case.batch(task, latents, hidden_only=False)
    assert batch.latents is not None and batch.noise is not None
    clean = batch.latents.index_select(0, batch.decoder.latents).repeat(case.config.mar.diffusion_batch_mul, 1)
    seen: list[Tensor] = []
    hook = model.module.denoiser.cond_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x_t = mar_noise(clean, batch.timesteps, noise=batch.noise)
    predicted = model.module(batch, batch.latents, x_t).noise
    hook.remove()
    losses = mar_diffusion_loss(predicted, clean, batch.timesteps, noise=batch.noise, reduction="none")
    squares = (batch.noise - predicted.chunk(2, dim=1)[0]).square().mean(1)
    z = seen[0].unflatten(0, (len(latents), -1))
    return {"z": z, "row_loss": losses, "row_mse": squares, "row_vb": losses - squares}


def _padded_positions(case: RecordedCase, task: str, batch: HarmonBatch) -> Tensor:
    """Positions of the language model's rows, int64 [B, rows with padding]; padding repeats the position before it."""
    slots = len(batch.encoder.order) // len(batch.language.view.segments.cu_seqlens_q[1:])
    lengths = batch.language.view.segments.cu_seqlens_q.diff().tolist()
    padded, start = [], 0
    for i, length in enumerate(lengths):
        real = case.inputs[f"{task}.attention_mask"][i].bool()
        condition = case.grid[0] * case.grid[1] + case.config.mar.buffer_size if task in SEEN else 0
        text = torch.cat((real[:3], torch.ones(condition, dtype=torch.bool), real[4:])) if condition else real
        whole = torch.cat((text, torch.ones(slots - condition, dtype=torch.bool)))
        positions = torch.zeros(len(whole), dtype=torch.int64)
        positions[whole] = batch.language.positions[start : start + length]
        padded.append(positions.cummax(0).values)
        start += length
    return torch.stack(padded)


class Recorded:
    """The recorded random numbers of one of B pictures. Those of all pictures lie behind one another in a step.

    Args:
        case: the case.
        number: of the picture.
    """

    def __init__(self, case: RecordedCase, number: int) -> None:
        self._inputs, self._number, self._where = case.inputs, number, case.folder / "inputs.safetensors"

    def order(self, tokens: int) -> Tensor:
        return self._inputs["sample.orders"][self._number]

    def start(self, step: int, tokens: int, channels: int) -> Tensor:
        rows = len(self._inputs["sample.orders"]) * tokens
        drawn = recorded_tensor(self._inputs, f"sample.init_noise.{step}", (rows, channels), self._where)
        return drawn[self._number * tokens : (self._number + 1) * tokens]

    def noise(self, step: int, count: int, tokens: int, channels: int) -> Tensor:
        drawn = recorded_tensor(self._inputs, f"sample.step_noise.{step}", (count, None, channels), self._where)
        return drawn[:, self._number * tokens : (self._number + 1) * tokens]


def replay_pictures(case: RecordedCase, model: Any, latents: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Draw the recorded pictures again, one by one: their latents [B, L, C] and, with a VAE, their pixels."""
    sampling = case.sampling()
    if sampling is None:
        return
    drawn: list[Tensor] = []
    for i in range(len(case.inputs["sample.orders"])):
        prefix, unguided = case.prefixes(latents[i], i)
        drawn += sample_latents(model.module, [prefix], unguided, case.grid, sampling, [Recorded(case, i)]).unbind()
    yield "sample.tokens", torch.stack(drawn)
    if model.encoders.vae is not None:
        yield "sample.image", torch.stack([model.encoders.pictures(x, case.grid, torch.float32) for x in drawn])
