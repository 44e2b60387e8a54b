"""Packed batches: samples laid out in the authors' packed order, then split into the two streams.

Letters in shapes: U understanding rows, G generation rows (noisy latent tokens), M target pictures, V ViT tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reca_fast.kernels import Varlen, to_device
from reca_fast.sample import I2T, TASKS

from .layers import AttentionPlan
from .layout import build_layout


@dataclass(frozen=True)
class PackedSequence:
    """One packed sequence under the authors' names (facts: BAGEL 3.2; the parity cases' inputs.safetensors)."""

    sample_lens: Sequence[int]
    split_lens: Sequence[int]
    attn_modes: Sequence[int]
    packed_text_ids: Tensor  # int64 [text rows]: words and markers
    packed_text_indexes: Tensor  # int64 [text rows]
    packed_position_ids: Tensor  # int64 [S], rotary
    packed_vit_tokens: Tensor | None  # [V, patch dim]; None when pictures are given instead, or there are none
    packed_vit_token_indexes: Tensor  # int64 [V]
    packed_vit_position_ids: Tensor  # int64 [V]
    vit_token_seqlens: Sequence[int]
    packed_vae_token_indexes: Tensor  # int64 [G]
    packed_latent_position_ids: Tensor  # int64 [G]
    patchified_vae_latent_shapes: Sequence[tuple[int, int]]  # (rows, columns) per target picture
    target_tasks: Sequence[str]  # task of each target picture, "reca" or "t2i"
    ce_loss_indexes: Tensor  # int64 [labels], may be empty
    packed_label_ids: Tensor  # int64 [labels]


class Draws(NamedTuple):
    """Every random number of one training step on a batch."""

    timesteps: Tensor  # fp32 [M] in (0, 1): how far each target picture is on its way to noise
    noise_seed: int  # noise of latent token g, channel c is a function of (noise_seed, g, c)
    posterior: tuple[Tensor, ...] = ()  # fp32 [z, h, w] per target picture: standard normal, for the VAE's posterior
    noise: Tensor | None = None  # [G, C]: recorded noise that replaces the seed's

    def to(self, device: torch.device | str) -> "Draws":
        return Draws(
            to_device(self.timesteps, device),
            self.noise_seed,
            tuple(to_device(each, device) for each in self.posterior),
            None if self.noise is None else to_device(self.noise, device),
        )


@dataclass(frozen=True)
class BagelBatch:
    """Tensors of one packed batch in stream order.

    What the frozen encoders make of its pictures is either still to be computed (`condition_images` or `patches`, and
    `target_images`) or there (`features`, `latents`).
    """

    plan: AttentionPlan
    und_rows: Tensor  # int64 [U] packed positions (verify puts the streams back together with them)
    gen_rows: Tensor  # int64 [G]
    und_positions: Tensor  # int64 [U] rotary
    gen_positions: Tensor  # int64 [G]
    text_ids: Tensor  # int64 [text rows]
    text_rows: Tensor  # int64 [text rows]: understanding row of each
    vit_rows: Tensor  # int64 [V]: understanding row of each
    vit_position_ids: Tensor  # int64 [V]
    vit_segments: Varlen
    latent_position_ids: Tensor  # int64 [G]
    image_index: Tensor  # int64 [G]: target picture of each latent token
    latent_cu_seqlens: Tensor  # int64 [M + 1]: first latent token of each target picture, then G
    latent_shapes: tuple[tuple[int, int], ...]  # (rows, columns) of each target picture, in latent tokens
    target_tasks: tuple[str, ...]  # [M]
    label_rows: Tensor | None  # int64 [labels]: understanding rows whose next token is predicted
    labels: Tensor | None  # int64 [labels]
    condition_images: tuple[Tensor, ...] = ()  # uint8 [H, W, 3], cut into patches on the device
    patches: Tensor | None = None  # [V, patch dim]: recorded ones, in place of condition_images
    target_images: tuple[Tensor, ...] = ()  # uint8 [H, W, 3], encoded by the VAE on the device
    features: Tensor | None = None  # [V, ViT width]: output of the ViT
    latents: Tensor | None = None  # [G, C]: latent tokens of the target pictures, from the VAE
    draws: Draws | None = None  # None in a batch that only conditions or samples

    @property
    def counts(self) -> dict[str, int]:
        """Task -> number of tokens whose losses are summed, as host integers."""
        counts = dict.fromkeys(TASKS, 0)
        for task, (rows, columns) in zip(self.target_tasks, self.latent_shapes, strict=True):
            counts[task] += rows * columns
        counts[I2T] += 0 if self.labels is None else len(self.labels)
        return counts

    @property
    def num_tokens(self) -> int:
        return len(self.und_rows) + len(self.gen_rows)

    def to(self, device: torch.device | str) -> "BagelBatch":
        """Move every tensor; the host does not wait for the copies."""
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                moved[f.name] = to_device(value, device)
            elif isinstance(value, (Varlen, AttentionPlan, Draws)):
                moved[f.name] = value.to(device)
        for name in ("condition_images", "target_images"):
            moved[name] = tuple(to_device(image, device) for image in getattr(self, name))
        return replace(self, **moved)


def make_batch(
    packed: PackedSequence,
    *,
    condition_images: Sequence[Tensor] = (),
    target_images: Sequence[Tensor] = (),
    draws: Draws | None = None,
    past_lengths: Sequence[int] | None = None,
) -> BagelBatch:
    """Sort the packed sequence into its two streams; `past_lengths`: keys of each sample that exist already."""
    total = sum(packed.sample_lens)
    is_gen = torch.zeros(total, dtype=torch.bool)
    is_gen[packed.packed_vae_token_indexes] = True
    layout = build_layout(packed.sample_lens, packed.split_lens, packed.attn_modes, is_gen, past_lengths)

    known = is_gen.clone()
    known[packed.packed_text_indexes] = known[packed.packed_vit_token_indexes] = True
    if not known.all():
        row = int(known.logical_not().nonzero()[0])
        raise ValueError(f"row {row} of the packed sequence is neither text nor ViT nor latent")

    # The latents come in the order of the packed sequence in both; a permutation would pair noise with the wrong token.
    if not torch.equal(layout.gen_rows, packed.packed_vae_token_indexes):
        raise ValueError("packed_vae_token_indexes: latent tokens must be in packed order")
    shapes = tuple((int(rows), int(columns)) for rows, columns in packed.patchified_vae_latent_shapes)
    areas = torch.tensor([rows * columns for rows, columns in shapes], dtype=torch.int64)
    stream_row = torch.full((total,), -1, dtype=torch.int64)
    stream_row[layout.und_rows] = torch.arange(len(layout.und_rows))
    has_labels = len(packed.ce_loss_indexes) > 0
    return BagelBatch(
        plan=layout.plan,
        und_rows=layout.und_rows,
        gen_rows=layout.gen_rows,
        und_positions=packed.packed_position_ids[layout.und_rows],
        gen_positions=packed.packed_position_ids[layout.gen_rows],
        text_ids=packed.packed_text_ids,
        text_rows=stream_row[packed.packed_text_indexes],
        vit_rows=stream_row[packed.packed_vit_token_indexes],
        vit_position_ids=packed.packed_vit_position_ids,
        vit_segments=Varlen.from_lengths(list(packed.vit_token_seqlens), list(packed.vit_token_seqlens), causal=False),
        latent_position_ids=packed.packed_latent_position_ids,
        image_index=torch.arange(len(areas)).repeat_interleave(areas),
        latent_cu_seqlens=torch.cat((areas.new_zeros(1), areas.cumsum(0))),
        latent_shapes=shapes,
        target_tasks=tuple(packed.target_tasks),
        label_rows=stream_row[packed.ce_loss_indexes] if has_labels else None,
        labels=packed.packed_label_ids if has_labels else None,
        condition_images=tuple(condition_images),
        patches=packed.packed_vit_tokens,
        target_images=tuple(target_images),
        draws=draws,
    )
