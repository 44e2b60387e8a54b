"""The batch of one pack: prompts behind one another, the queries of each sample, and the targets, sorted by size.

Samples whose targets have one size are neighbours, in all tensors. Letters in shapes: M samples, each with one target;
P tokens of all prompts; Q queries of a sample; V tokens of pictures in prompts; T latent cells of all targets; C
numbers in a cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reca_fast.kernels import Varlen, to_device
from reca_fast.models.parts.qwen2 import View, causal_view, view_behind

from .sana import Group, make_group

FEATURES, LATENTS = "features", "latents"
"""What a cache calls the picture's tokens of a condition, and the latents of a target."""
TIMES = 1000
"""Times of training: 1 is nearly the picture, 1000 is noise."""


class Draws(NamedTuple):
    """Every random number of one training step on a batch."""

    timesteps: Tensor  # fp32 [M], whole numbers from 1 to TIMES
    noise_seed: int  # the noise of latent cell t in channel c is a function of (noise_seed, t, c)
    noise: Tensor | None = None  # [T, C]: the noise itself, where it was recorded; noise_seed is not read then

    def to(self, device: torch.device | str) -> "Draws":
        """The same on a device."""
        noise = None if self.noise is None else to_device(self.noise, device)
        return Draws(to_device(self.timesteps, device), self.noise_seed, noise)


@dataclass(frozen=True)
class OpenUniBatch:
    """One pack.

    Of its pictures it holds either the pixels, which the frozen encoders have still to read (`conditions`, `targets`),
    or what the encoders made of them (`features`, `latents`).
    """

    prompt_ids: Tensor  # int64 [P]; always on the host
    prompt_positions: Tensor  # int64 [P], in the rotary embedding
    prompt_view: View  # what the tokens of prompts see
    picture_rows: Tensor  # int64 [V]: the rows of prompts that pictures take
    query_positions: Tensor  # int64 [M * Q], in the rotary embedding
    query_view: View  # what the queries see: their prompt, and those before them
    query_segments: Varlen  # the queries of each sample, which see each other in the connector
    groups: tuple[Group, ...]  # the targets, by size
    target_index: Tensor  # int64 [T]: number of the target that each cell belongs to
    target_tasks: tuple[str, ...]  # [M]: task of each target, "reca" or "t2i"
    conditions: tuple[Tensor, ...] = ()  # uint8 [H, W, 3] each; often the very tensors that are in `targets`
    targets: tuple[Tensor, ...] = ()  # uint8 [H, W, 3] each
    features: Tensor | None = None  # [V, width of the language model]
    latents: Tensor | None = None  # fp32 [T, C]
    draws: Draws | None = None  # None in a batch of sampling, which no loss is taken of

    @property
    def counts(self) -> dict[str, int]:
        """Task -> number of latent cells whose losses are summed, as host integers."""
        counts: dict[str, int] = {}
        cells = [group.rows * group.columns for group in self.groups for _ in range(group.pictures)]
        for task, area in zip(self.target_tasks, cells, strict=True):
            counts[task] = counts.get(task, 0) + area
        return counts

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.query_positions) + len(self.target_index)

    def to(self, device: torch.device | str) -> "OpenUniBatch":
        """The batch with every tensor but `prompt_ids` on `device`. A picture that serves as condition and as target is
        copied once. The host does not wait for the copies.
        """
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor) and f.name != "prompt_ids":
                moved[f.name] = to_device(value, device)
            elif isinstance(value, (View, Varlen, Draws)):
                moved[f.name] = value.to(device)
        pictures = {id(picture): picture for picture in (*self.conditions, *self.targets)}
        there = {key: to_device(picture, device) for key, picture in pictures.items()}
        for name in ("conditions", "targets"):
            moved[name] = tuple(there[id(picture)] for picture in getattr(self, name))
        return replace(self, **moved, groups=tuple(group.to(device) for group in self.groups))


def make_batch(
    prompts: Sequence[Sequence[int]],
    shapes: Sequence[tuple[int, int]],
    queries: int,
    picture: int,
    *,
    tasks: Sequence[str],
    **others: Any,
) -> OpenUniBatch:
    """Lay out a pack.

    Args:
        prompts: token ids of each sample's prompt.
        shapes: (rows, columns) of each target in latent cells; equal ones are neighbours.
        queries: of a sample.
        picture: the id that stands for a token of a picture.
        tasks: of each target.
        others: the fields of `OpenUniBatch` from `conditions` on.
    """
    lengths, counts = [len(ids) for ids in prompts], [queries] * len(prompts)
    ids = torch.tensor([token for prompt in prompts for token in prompt], dtype=torch.int64)
    groups = tuple(make_group(len(list(same)), *shape, queries) for shape, same in groupby(shapes))
    areas = torch.tensor([rows * columns for rows, columns in shapes], dtype=torch.int64)
    return OpenUniBatch(
        prompt_ids=ids,
        prompt_positions=_counted([0] * len(lengths), lengths),
        prompt_view=causal_view(lengths),
        picture_rows=(ids == picture).nonzero()[:, 0],
        query_positions=_counted(lengths, counts),
        query_view=view_behind(lengths, counts),
        query_segments=Varlen.from_lengths(counts, counts, causal=False),
        groups=groups,
        target_index=torch.arange(len(areas)).repeat_interleave(areas),
        target_tasks=tuple(tasks),
        **others,
    )


def _counted(starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """start, start + 1, ... of each sample, behind one another."""
    parts = [torch.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


def draw_timesteps(uniform: Tensor) -> Tensor:
    """Times from 1 to TIMES, whole numbers in fp32, from u in [0, 1): TIMES - floor(TIMES * u)."""
    return TIMES - (TIMES * uniform).floor()


def to_cells(latents: Tensor) -> Tensor:
    """[C, rows, columns] -> [rows * columns, C], row by row. Of several, [pictures, C, rows, columns], the cells lie
    behind one another.
    """
    return latents.flatten(-2).mT.flatten(0, -2)


def to_pictures(cells: Tensor, rows: int, columns: int) -> Tensor:
    """The other way round, of pictures of one size: [pictures * rows * columns, C] -> [pictures, C, rows, columns]."""
    pictures: Tensor = cells.unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 2)
    return pictures
