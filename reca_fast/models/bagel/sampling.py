"""Pictures from conditions: the prefix once, then Euler steps of the target split against its cached keys and
values.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from reca_fast.config import SamplingConfig
from reca_fast.errors import UserError

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
) -> list[Tensor]:
    """Draw one latent picture per condition.

    Args:
        conditions: what each picture is drawn from.
        shapes: (rows, columns) of each picture in latent tokens.
        sampling: steps, shift, guidance, seed.

    Returns:
        latent tokens [rows * columns, C] of each picture, fp32.
    """
    if sampling.steps < 2:
        raise UserError(f"sampling.steps={sampling.steps}: at least 2 points of time are needed.")
    device = model.latent_pos_embed.device
    guided = sampling.guidance != 1.0
    # The unconditional pass of classifier-free guidance rides in the same batch, as pictures with an empty condition.
    conditions = [*conditions, *([(None, None)] * len(conditions) if guided else [])]
    cache, past, following = encode_conditions(model, tokenizer, conditions)
    doubled = [*shapes, *(shapes if guided else [])]
    batch = collate_targets(doubled, following, past, model.config, tokenizer).to(device)

    generator = torch.Generator().manual_seed(sampling.seed)
    areas = [rows * columns for rows, columns in shapes]
    x = torch.randn(sum(areas), model.config.patch_latent_dim, generator=generator).to(device)
    grid = time_grid(sampling.steps, sampling.timestep_shift)
    for t, t_next in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        velocity = _velocity(model, batch, torch.cat((x, x)) if guided else x, t, cache)
        if guided:
            conditional, unconditional = velocity.chunk(2)
            velocity = _guide(conditional, unconditional, areas, sampling.guidance)
        x = x - velocity * (t - t_next)
    return list(x.split(areas))


def _velocity(model: Bagel, batch: BagelBatch, x: Tensor, t: float, cache: list[KeyValue] | None) -> Tensor:
    """fp32 [G, C] at one time for all pictures."""
    timesteps = torch.full((len(batch.latent_shapes),), t, device=x.device)
    gen = model.embed_latents(batch, x, timesteps)
    und = model.embed_understanding(batch)  # of the markers
    _, out, _ = model.decode(und, gen, batch.plan, batch.und_positions, batch.gen_positions, past=cache, need_und=False)
    return model.llm2vae(model.norm_gen(out)).float()


def _guide(conditional: Tensor, unconditional: Tensor, areas: Sequence[int], scale: float) -> Tensor:
    """Guided velocity, rescaled per picture so that its norm never exceeds the conditional one's."""
    guided = unconditional + scale * (conditional - unconditional)
    parts = zip(guided.split(list(areas)), conditional.split(list(areas)), strict=True)
    return torch.cat([g * (c.norm() / g.norm().clamp(min=1e-12)).clamp(max=1.0) for g, c in parts])
