"""Latent pictures drawn token by token: an outer loop over MAR's orders, an inner one over the diffusion of each token.
Pictures of one grid may be drawn together: each has its own order, and in a step all draw as many tokens.

The prefix, a request and perhaps a condition, goes through the language model once; its keys and values serve all
steps. With guidance a second branch has the prefix "Generate an image." alone. Both branches see the same tokens, so
they share the encoder's pass.

How a matrix product rounds depends on its number of rows: pictures that are drawn together depend on each other that
much, and one that is drawn alone on nothing.

Letters in shapes: B branches, N pictures, L tokens of a picture, H of them hidden, of which D are drawn in a step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from reca_fast.config.sampling import GuidanceSchedule
from reca_fast.models.parts.qwen2 import KeyValue, view_behind

from .diffusion import Step, kept_steps, schedule
from .layout import Piece, Prompt, build_layout
from .network import Harmon
from .positions import Grid


@dataclass(frozen=True)
class HarmonSampling:
    """The fields of `SamplingConfig` that Harmon follows, as its authors' evaluation sets them."""

    steps: int = 64
    guidance: float = 3.0
    guidance_schedule: GuidanceSchedule = "constant"
    temperature: float = 1.0


class Prefix(NamedTuple):
    """What a picture is drawn from."""

    prompt: Prompt
    condition: Tensor | None = None  # latents [tokens, C]
    grid: Grid | None = None  # of the condition


class Chance(Protocol):
    """The random numbers that one picture is drawn with."""

    def order(self, tokens: int) -> Tensor:
        """A permutation of the tokens, int64: those that stay hidden longest come first."""

    def start(self, step: int, tokens: int, channels: int) -> Tensor:
        """Standard normal fp32 [tokens, channels]: where the diffusion of the tokens of an outer step starts."""

    def noise(self, step: int, count: int, tokens: int, channels: int) -> Tensor:
        """Standard normal fp32 [count, tokens, channels]: of its `count` inner steps, in the order that they come."""


class Seeded:
    """The random numbers that follow from a seed."""

    def __init__(self, seed: int) -> None:
        self._draw = torch.Generator().manual_seed(seed)

    def order(self, tokens: int) -> Tensor:
        return torch.randperm(tokens, generator=self._draw)

    def start(self, step: int, tokens: int, channels: int) -> Tensor:
        return torch.randn(tokens, channels, generator=self._draw)

    def noise(self, step: int, count: int, tokens: int, channels: int) -> Tensor:
        return torch.randn(count, tokens, channels, generator=self._draw)


@torch.no_grad()
def sample_latents(
    model: Harmon,
    prefixes: Sequence[Prefix],
    unguided: Prefix,
    grid: Grid,
    sampling: HarmonSampling,
    chances: Sequence[Chance],
) -> Tensor:
    """Draw latent pictures of one size.

    Args:
        model: on its device, with weights.
        prefixes: what each picture is drawn from.
        unguided: what guidance compares with.
        grid: rows and columns of a picture's tokens.
        sampling: how to draw.
        chances: the random numbers of each picture.

    Returns:
        Latents fp32 [N, L, C], row by row.
    """
    mar, device = model.config.mar, model.mar.fake_latent.device
    steps = schedule(kept_steps(mar.num_sampling_steps))
    total, pictures = grid[0] * grid[1], len(prefixes)
    latents = torch.zeros(pictures, total, mar.token_dim, device=device)
    order = torch.stack([chance.order(total) for chance in chances])
    # "Generate an image." is short: each picture has its own, and all branches are packed alike.
    past = encode_prefixes(model, [*prefixes, *[unguided] * (pictures if sampling.guidance != 1 else 0)])
    first = total * torch.arange(pictures)[:, None]
    hidden = total
    for number in range(sampling.steps):
        keep = hidden_after(number, sampling.steps, total, hidden)
        drawn = order[:, keep:hidden].sort().values
        if count := hidden - keep:
            z = _conditions(model, latents, grid, order[:, :hidden], drawn, past)
            scale = _guidance(sampling, keep, total)
            noise = (
                torch.cat([chance.start(number, count, mar.token_dim) for chance in chances]),
                torch.cat([chance.noise(number, len(steps), count, mar.token_dim) for chance in chances], 1),
            )
            made = _denoise(model, steps, z, noise, scale, sampling.temperature)
            latents.flatten(0, 1)[(first + drawn).flatten().to(device)] = made
        hidden = keep
    return latents


def hidden_after(number: int, steps: int, total: int, hidden: int) -> int:
    """How many of the `total` tokens stay hidden after an outer step, before which there were `hidden`."""
    if number + 1 == steps:
        return 0
    share = math.cos(math.pi / 2 * (number + 1) / steps)
    return max(1, min(hidden - 1, math.floor(total * share)))


def _guidance(sampling: HarmonSampling, keep: int, total: int) -> float:
    """The scale of guidance in an outer step that leaves `keep` tokens hidden. The authors count one as hidden still in
    the last step, which draws all.
    """
    if sampling.guidance_schedule == "constant":
        return sampling.guidance
    return 1 + (sampling.guidance - 1) * (total - max(1, keep)) / total


class Past(NamedTuple):
    """The prefixes of all branches and pictures after their way through the language model."""

    cache: list[KeyValue]  # for each layer, keys and values of all rows, prefix after prefix
    lengths: list[int]  # rows of each prefix


def encode_prefixes(model: Harmon, prefixes: Sequence[Prefix]) -> Past:
    """Send the prefixes, packed, through encoder and language model, and keep what the tokens read of them."""
    device = model.mar.fake_latent.device
    layout = build_layout([Piece(p.prompt, condition=p.grid) for p in prefixes], model.config.mar.buffer_size)
    conditions = [p.condition for p in prefixes if p.condition is not None]
    nothing = torch.zeros(0, model.config.mar.token_dim, device=device)
    encoder, plan = layout.encoder.to(device), layout.language.to(device)
    slots = model.slots(model.see(torch.cat([nothing, *conditions]), encoder), encoder)
    stream = model.llm.stream(model.read(slots, plan), plan.positions)
    _, cache = model.llm(stream, plan.view, model.attention, keep=True)
    lengths: list[int] = layout.language.view.segments.cu_seqlens_q.diff().tolist()
    return Past(cache, lengths)


def _conditions(model: Harmon, latents: Tensor, grid: Grid, hidden: Tensor, drawn: Tensor, past: Past) -> Tensor:
    """What the denoiser is conditioned on, z [B, N * D, width].

    Args:
        latents: [N, L, C], of which those of hidden tokens are not read.
        hidden: int64 [N, H], the hidden tokens.
        drawn: int64 [N, D], those of them that are drawn now, rising.
    """
    device, buffers, (pictures, tokens, _) = latents.device, model.config.mar.buffer_size, latents.shape
    branches = len(past.lengths) // pictures
    mask = torch.zeros(pictures, tokens, dtype=torch.bool).scatter(1, hidden, True)
    pieces = [Piece(Prompt((), ()), target=grid, hidden=each) for each in mask]
    encoder = build_layout(pieces, buffers).encoder.to(device)
    layout = build_layout(pieces * branches, buffers)
    rows = encoder.segments.max_seqlen_q
    starts = torch.tensor(past.lengths).repeat_interleave(rows)
    language = layout.language._replace(positions=layout.language.positions + starts).to(device)
    first, of_branches = torch.arange(len(past.lengths))[:, None], drawn.repeat(branches, 1)
    decoder = layout.decoder._replace(
        rows=(first * (buffers + tokens) + buffers + of_branches).flatten(),
        tokens=(first * tokens + of_branches).flatten(),
    ).to(device)

    seen = model.see(latents.flatten(0, 1), encoder)
    slots = model.proj_in(seen).repeat(branches, 1)
    stream = model.llm.stream(model.read(slots, language), language.positions)
    view = view_behind(past.lengths, [rows] * len(past.lengths)).to(device)
    read, _ = model.llm(stream, view, model.attention, past=past.cache)
    z = model.draw(seen.repeat(branches, 1), read.index_select(0, language.seen), decoder)
    by_branch: Tensor = z.unflatten(0, (branches, -1))
    return by_branch


def _denoise(
    model: Harmon, steps: Sequence[Step], z: Tensor, noise: tuple[Tensor, Tensor], scale: float, temperature: float
) -> Tensor:
    """Latents fp32 [N * D, C], from noise through all kept steps.

    Guidance acts on the predicted noise alone; where the variance lies, the first branch says.
    """
    branches, tokens, _ = z.shape
    x, between = (part.to(z.device) for part in noise)
    flat = z.flatten(0, 1)
    for number, step in enumerate(reversed(steps)):
        times = torch.full((1,), step.number, device=z.device)
        predicted: Tensor = model.denoiser(x.repeat(branches, 1), times, flat).float()
        eps, nu = predicted.unflatten(0, (branches, tokens)).chunk(2, dim=-1)
        guided = eps[0] if branches == 1 else eps[1] + scale * (eps[0] - eps[1])
        clean = step.from_x * x - step.from_noise * guided
        log_variance = (nu[0] + 1) / 2 * step.most + (1 - nu[0]) / 2 * step.least
        x = step.clean * clean + step.noisy * x
        if number + 1 < len(steps):
            x = x + (0.5 * log_variance).exp() * temperature * between[number]
    return x
