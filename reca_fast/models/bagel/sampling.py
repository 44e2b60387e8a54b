"""Latent pictures from conditions and prompts.

A picture is drawn in Euler steps from noise to data. Its prefix, which is a condition and a prompt, goes through the
decoder once, and every step reads the keys and values that this left behind. With guidance each step is also predicted
from the prefix without its prompt, and perhaps without its condition; these branches are packed into one batch.

The branches of a single picture are all that the model gets at once, unless pictures are drawn together. How a matrix
product rounds depends on its number of rows, and a trained model makes visible differences out of a last bit: pictures
that are packed together depend on each other that much.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from reca_fast.config.sampling import GuidanceRenorm
from reca_fast.models.together import draw_together

from .batch import BagelBatch
from .collate import Prefix, collate_prefixes, collate_targets
from .layers import KeyValue
from .network import Bagel
from .tokenizer import BagelTokenizer

Encode = Callable[[BagelBatch], BagelBatch]
"""Puts what the encoders make of them in the place of a batch's pictures."""


@dataclass(frozen=True)
class BagelSampling:
    """The fields of `SamplingConfig` that BAGEL follows, as its authors' text-to-image scripts set them."""

    steps: int = 49  # the authors' num_timesteps of 50
    timestep_shift: float = 3.0
    guidance: float = 4.0
    image_guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_renorm: GuidanceRenorm = "global"
    guidance_renorm_min: float = 0.0


class EncodedPrefixes(NamedTuple):
    """The prefixes of all branches and pictures after their one way through the decoder."""

    cache: list[KeyValue] | None  # per layer, keys and values of all rows, prefix after prefix; None without any row
    lengths: list[int]  # rows of each prefix
    following: list[int]  # the rotary position that comes after each prefix


class Target(NamedTuple):
    """The tokens of pictures of one shape, once for each branch of a step, and what they attend to."""

    batch: BagelBatch
    markers: Tensor  # [U, D] embedding of the two markers around each copy, the same at every time
    past: list[KeyValue] | None  # keys and values of the branches' prefixes


def time_grid(steps: int, shift: float) -> Tensor:
    """The times between which the Euler steps go, fp32 [steps + 1], falling from 1 (noise) to 0 (data).

    Evenly spaced times t become shift * t / (1 + (shift - 1) * t), so a shift above 1 takes more steps near the noise.
    """
    t = torch.linspace(1, 0, steps + 1)
    return shift * t / (1 + (shift - 1) * t)


@torch.no_grad()
def sample_latents(
    model: Bagel,
    tokenizer: BagelTokenizer,
    encode: Encode,
    prefixes: Sequence[Prefix],
    shapes: Sequence[tuple[int, int]],
    sampling: BagelSampling,
    seeds: Sequence[int],
    *,
    as_latents: bool = False,
    together: int = 1,
) -> list[Tensor]:
    """Draw one latent picture for each prefix. It depends on its own prefix, shape and seed alone, bit for bit unless
    several are drawn at once.

    Args:
        model: on its device, with weights.
        encode: computes the ViT's features of the conditions, or their latents.
        prefixes: what each picture is drawn from.
        shapes: (rows, columns) of each picture in latent tokens.
        sampling: steps, shift and guidance.
        seeds: of the noise that each picture starts from.
        as_latents: conditions are the VAE's latents, means of their distributions; those that are edited excepted.
        together: how many pictures of one shape are drawn at once, at most.

    Returns:
        Latent tokens fp32 [rows * columns, C] of each picture.
    """
    kinds = [(shape, condition is None) for (condition, _), shape in zip(prefixes, shapes, strict=True)]

    def draw(numbers: list[int]) -> Sequence[Tensor]:
        chosen, starts = [prefixes[i] for i in numbers], [seeds[i] for i in numbers]
        return _draw(model, tokenizer, encode, chosen, shapes[numbers[0]], sampling, starts, as_latents).unbind()

    return draw_together(kinds, together, draw)


def _draw(
    model: Bagel,
    tokenizer: BagelTokenizer,
    encode: Encode,
    prefixes: Sequence[Prefix],
    shape: tuple[int, int],
    sampling: BagelSampling,
    seeds: Sequence[int],
    as_latents: bool,
) -> Tensor:
    """Latent pictures of one shape, fp32 [pictures, rows * columns, C]; all have a condition, or none has."""
    pictures, tokens, channels = len(prefixes), shape[0] * shape[1], model.config.patch_latent_dim
    grid = time_grid(sampling.steps, sampling.timestep_shift)
    above, up_to = sampling.guidance_interval
    inside = ((grid[:-1] > above) & (grid[:-1] <= up_to)).tolist()
    of_each = [_branches(prefix, sampling) if any(inside) else [prefix] for prefix in prefixes]
    branches = [list(branch) for branch in zip(*of_each, strict=True)]  # the pictures of a branch lie together
    encoded = encode_prefixes(model, tokenizer, encode, list(chain(*branches)), as_latents)

    unguided = _target(model, tokenizer, shape, encoded, pictures)
    guided = _target(model, tokenizer, shape, encoded, pictures * len(branches)) if len(branches) > 1 else unguided

    x = torch.cat([torch.randn(tokens, channels, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    x = x.to(model.latent_pos_embed.device)
    for t, t_next, is_guided in zip(grid[:-1].tolist(), grid[1:].tolist(), inside, strict=True):
        if is_guided and len(branches) > 1:
            velocities = _velocity(model, guided, x.repeat(len(branches), 1), t)
            of_branches = velocities.view(len(branches), pictures, tokens, channels).unbind()
            velocity = _guide(of_branches, sampling).flatten(0, 1)
        else:
            velocity = _velocity(model, unguided, x, t)
        x = x - velocity * (t - t_next)
    return x.view(pictures, tokens, channels)


def _branches(prefix: Prefix, sampling: BagelSampling) -> list[Prefix]:
    """The prefixes that a guided step is predicted from.

    First the given one, then the one without its prompt and, when `image_guidance` acts, the one without its condition.
    Guidance that is off, or has no condition to leave out, adds no branch.
    """
    condition, prompt = prefix
    branches: list[Prefix] = [prefix]
    if sampling.guidance > 1:
        branches.append((condition, None))
        if sampling.image_guidance > 1 and condition is not None:
            branches.append((None, prompt))
    return branches


def encode_prefixes(
    model: Bagel, tokenizer: BagelTokenizer, encode: Encode, prefixes: Sequence[Prefix], as_latents: bool = False
) -> EncodedPrefixes:
    """Send the prefixes, packed into one batch, through the decoder and keep what the targets read of it."""
    batch, lengths, following = collate_prefixes(prefixes, model.config, tokenizer, as_latents)
    if not sum(lengths):
        return EncodedPrefixes(None, lengths, following)
    batch = encode(batch.to(model.latent_pos_embed.device))
    und, rows = model.embed_understanding(batch), batch.und_rows
    if batch.clean is None:
        _, _, cache = model.decode(und, None, batch.plan, batch.und_positions, None, need_und=False)
    else:
        none = torch.zeros(0, model.config.patch_latent_dim, device=rows.device)
        gen, rows = model.embed_latents(batch, none, none[:, 0]), torch.cat((batch.und_rows, batch.gen_rows))
        positions = batch.und_positions, batch.gen_positions
        _, _, cache = model.decode(und, gen, batch.plan, *positions, need_und=False, keep=True)
    packed_order = torch.argsort(rows)  # the streams are ordered by split mode, the cache by prefix
    ordered: list[KeyValue] = [(k.index_select(0, packed_order), v.index_select(0, packed_order)) for k, v in cache]
    return EncodedPrefixes(ordered, lengths, following)


def _target(
    model: Bagel, tokenizer: BagelTokenizer, shape: tuple[int, int], encoded: EncodedPrefixes, prefixes: int
) -> Target:
    """A picture of (rows, columns) latent tokens behind each of the first `prefixes` prefixes."""
    lengths, following = encoded.lengths[:prefixes], encoded.following[:prefixes]
    batch = collate_targets([shape] * prefixes, following, lengths, model.config, tokenizer)
    batch = batch.to(model.latent_pos_embed.device)
    rows = sum(lengths)
    past: list[KeyValue] | None = None
    if encoded.cache is not None and rows:
        past = [(k[:rows], v[:rows]) for k, v in encoded.cache]
    return Target(batch, model.embed_understanding(batch), past)


def _velocity(model: Bagel, target: Target, x: Tensor, t: float) -> Tensor:
    """Velocity fp32 [G, C] of the noisy tokens x [G, C] of all branches of the target, at one time."""
    batch = target.batch
    timesteps = torch.full((len(batch.latent_shapes),), t, device=x.device)
    gen = model.embed_latents(batch, x, timesteps)
    positions = batch.und_positions, batch.gen_positions
    _, out, _ = model.decode(target.markers, gen, batch.plan, *positions, past=target.past, need_und=False)
    velocity: Tensor = model.llm2vae(model.norm_gen(out)).float()
    return velocity


def _guide(velocities: Sequence[Tensor], sampling: BagelSampling) -> Tensor:
    """One velocity [pictures, tokens, C] out of those of the branches, in the order of `_branches`.

    It leads away from the branch without prompt, then from the one without condition, and is scaled back towards the
    length of the first branch as `guidance_renorm` says.
    """
    full, promptless, *rest = velocities
    kind, least = sampling.guidance_renorm, sampling.guidance_renorm_min
    guided = promptless + sampling.guidance * (full - promptless)
    if kind == "text_channel":  # the guidance by the condition comes after it and is not rescaled
        guided = _rescale(guided, full, least)
    if sampling.image_guidance > 1:
        conditionless = rest[0] if rest else full
        guided = conditionless + sampling.image_guidance * (guided - conditionless)
    if kind == "channel":
        guided = _rescale(guided, full, least)
    if kind == "global":
        guided = _rescale(guided.flatten(1), full.flatten(1), least).view_as(guided)
    return guided


def _rescale(guided: Tensor, reference: Tensor, least: float) -> Tensor:
    """Scale `guided` along its last dimension to the length of `reference`: by at least `least`, by 1 at most."""
    wanted, found = (torch.linalg.vector_norm(v, dim=-1, keepdim=True) for v in (reference, guided))
    scale: Tensor = (wanted / (found + 1e-8)).clamp(min=least, max=1.0)
    return guided * scale
