"""Pictures from conditions: the prefix once, then Euler steps of the target split against its cached keys and
values.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from reca_fast.config import SamplingConfig

from .batch import BagelBatch
from .collate import collate_prefixes, collate_targets
from .layers import KeyValue
from .model import Bagel
from .tokenizer import BagelTokenizer

Condition = tuple[Tensor | None, Sequence[int] | None]  # understanding picture uint8 [H, W, 3], prompt ids


def time_grid(steps: int, shift: float) -> Tensor:
    """fp32 [steps] from 1 to 0, shifted towards noise: s t / (1 + (s - 1) t)."""
    t = torch.linspace(1, 0, steps)
    return shift * t / (1 + (shift - 1) * t)


def encode_conditions(
    model: Bagel, tokenizer: BagelTokenizer, conditions: Sequence[Condition]
) -> tuple[list[KeyValue] | None, list[int], list[int]]:
    """Keys and values per layer of all conditions, condition after condition; their lengths; the positions after
    them.
    """
    batch, lengths, following = collate_prefixes(conditions, model.config, tokenizer)
    if not sum(lengths):
        return None, lengths, following
    device = model.latent_pos_embed.device
    batch = batch.to(device)
    und = model.embed_understanding(batch)
    _, _, cache = model.decode(und, None, batch.plan, batch.und_positions, None, need_und=False)
    packed_order = torch.argsort(batch.und_rows)  # the stream is ordered by split mode, the cache by condition
    ordered: list[KeyValue] = [(k.index_select(0, packed_order), v.index_select(0, packed_order)) for k, v in cache]
    return ordered, lengths, following


@torch.no_grad()
def sample_latents(
    model: Bagel,
    tokenizer: BagelTokenizer,
    conditions: Sequence[Condition],
    shapes: Sequence[tuple[int, int]],
    sampling: SamplingConfig,
    first: int = 0,
) -> list[Tensor]:
    """Draw one latent picture per condition.

    Args:
        conditions: what each picture is drawn from.
        shapes: (rows, columns) of each picture in latent tokens.
        sampling: steps, shift, guidance, seed.
        first: number of the first picture among all that are drawn: picture i starts from the noise of seed
            `sampling.seed + first + i`, whatever is drawn beside it.

    Returns:
        latent tokens [rows * columns, C] of each picture, fp32.

    Raises:
        UserError: settings that draw nothing (`SamplingConfig.check`).
    """
    sampling.check()
    device = model.latent_pos_embed.device
    grid = time_grid(sampling.steps, sampling.timestep_shift)
    above, up_to = sampling.guidance_interval
    inside = ((grid[:-1] > above) & (grid[:-1] <= up_to)).tolist()
    # The conditions of guidance ride in the same batch, and only at the times that are guided.
    passes = _passes(conditions, sampling) if any(inside) else [list(conditions)]
    cache, past, following = encode_conditions(model, tokenizer, [c for group in passes for c in group])

    def targets(groups: int) -> BagelBatch:
        count = groups * len(shapes)
        where = (list(shapes) * groups, following[:count], past[:count])
        return collate_targets(*where, model.config, tokenizer).to(device)

    plain, plain_cache = targets(1), _first_rows(cache, sum(past[: len(shapes)]))
    guided = targets(len(passes)) if len(passes) > 1 else plain

    areas = [rows * columns for rows, columns in shapes]
    noise = [
        torch.randn(area, model.config.patch_latent_dim, generator=_generator(sampling.seed + first + number))
        for number, area in enumerate(areas)
    ]
    x = torch.cat(noise).to(device)
    for t, t_next, is_guided in zip(grid[:-1].tolist(), grid[1:].tolist(), inside, strict=True):
        if is_guided and len(passes) > 1:
            velocities = _velocity(model, guided, x.repeat(len(passes), 1), t, cache).chunk(len(passes))
            velocity = _guide(velocities, areas, sampling)
        else:
            velocity = _velocity(model, plain, x, t, plain_cache)
        x = x - velocity * (t - t_next)
    return list(x.split(areas))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _first_rows(cache: list[KeyValue] | None, rows: int) -> list[KeyValue] | None:
    """The cache of the first conditions alone; None when they are empty."""
    return [(k[:rows], v[:rows]) for k, v in cache] if cache is not None and rows else None


def _passes(conditions: Sequence[Condition], sampling: SamplingConfig) -> list[list[Condition]]:
    """Conditions of each forward pass of a guided time: as given, without the prompt and, when the picture guides as
    well, without the picture. Guidance that is off, or has no picture to leave out, adds no pass.
    """
    passes = [list(conditions)]
    if sampling.guidance > 1:
        passes.append([(picture, None) for picture, _ in conditions])
        if sampling.image_guidance > 1 and any(picture is not None for picture, _ in conditions):
            passes.append([(None, ids) for _, ids in conditions])
    return passes


def _velocity(model: Bagel, batch: BagelBatch, x: Tensor, t: float, cache: list[KeyValue] | None) -> Tensor:
    """fp32 [G, C] at one time for all pictures."""
    timesteps = torch.full((len(batch.latent_shapes),), t, device=x.device)
    gen = model.embed_latents(batch, x, timesteps)
    und = model.embed_understanding(batch)  # of the markers
    _, out, _ = model.decode(und, gen, batch.plan, batch.und_positions, batch.gen_positions, past=cache, need_und=False)
    return model.llm2vae(model.norm_gen(out)).float()


def _guide(velocities: Sequence[Tensor], areas: Sequence[int], sampling: SamplingConfig) -> Tensor:
    """One velocity [G, C] out of those of `_passes`: away from the one without prompt, then from the one without
    picture, rescaled towards the length of the first.
    """
    conditional, promptless, *rest = velocities
    kind, least = sampling.guidance_renorm, sampling.guidance_renorm_min
    guided = promptless + sampling.guidance * (conditional - promptless)
    if kind == "text_channel":  # the picture's guidance comes after it and is not rescaled
        guided = _rescale(guided, conditional, least)
    if sampling.image_guidance > 1:
        pictureless = rest[0] if rest else conditional
        guided = pictureless + sampling.image_guidance * (guided - pictureless)
    if kind == "channel":
        guided = _rescale(guided, conditional, least)
    if kind == "global":
        pictures = zip(guided.split(list(areas)), conditional.split(list(areas)), strict=True)
        guided = torch.cat([_rescale(g.flatten(), c.flatten(), least).view_as(g) for g, c in pictures])
    return guided


def _rescale(guided: Tensor, conditional: Tensor, least: float) -> Tensor:
    """Scale `guided` along its last dimension to the length of `conditional`: by at least `least`, by 1 at most."""
    wanted, found = (v.norm(dim=-1, keepdim=True) for v in (conditional, guided))
    return guided * (wanted / (found + 1e-8)).clamp(min=least, max=1.0)
