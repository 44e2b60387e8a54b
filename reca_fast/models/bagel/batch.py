"""The batch of one pack: first one sequence in the authors' order, then the two streams that the layers work on.

`PackedSequence` is the sequence, with the rows of all samples one behind another. `make_batch` sorts its rows by expert
into the understanding stream and the generation stream; how, is drawn in `AttentionPlan`. A row's place in the sequence
is called its packed position here.

Letters in shapes: S rows of the sequence; U rows of the understanding stream; G rows of the generation stream (latent
tokens); M targets; V vision patches, each a token of the ViT; C numbers of a latent token.
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

FEATURES, MOMENTS = "features", "moments"
"""What a cache calls the ViT's features of a condition, and the distribution that the VAE gives for a target."""


@dataclass(frozen=True)
class PackedSequence:
    """The rows of a pack, sample after sample.

    The names are those of the authors' code, under which the parity cases record them (`inputs.safetensors`).
    docs/models/bagel.md, "The packed sequence", explains splits, modes and positions.
    """

    sample_lens: Sequence[int]  # rows of each sample; they add up to S
    split_lens: Sequence[int]  # rows of each split, in order; they add up to S
    attn_modes: Sequence[int]  # mode of each split: CAUSAL, FULL or NOISE of `layout.py`
    packed_text_ids: Tensor  # int64 [text rows]: token ids of prompts and of all markers
    packed_text_indexes: Tensor  # int64 [text rows]: packed position of each
    packed_position_ids: Tensor  # int64 [S]: position in the rotary embedding
    packed_vit_tokens: Tensor | None  # [V, numbers of a patch]; None if conditions are given as pictures, or absent
    packed_vit_token_indexes: Tensor  # int64 [V]: packed position of each patch
    packed_vit_position_ids: Tensor  # int64 [V]: entry of the ViT's position table
    vit_token_seqlens: Sequence[int]  # patches of each condition
    packed_vae_token_indexes: Tensor  # int64 [G]: packed position of each latent token
    packed_latent_position_ids: Tensor  # int64 [G]: entry of the latents' position table
    patchified_vae_latent_shapes: Sequence[tuple[int, int]]  # (rows, columns) of each picture of latents, in tokens
    target_tasks: Sequence[str]  # task of each target, "reca" or "t2i"; conditions that are latents have none
    ce_loss_indexes: Tensor  # int64 [labels]: packed position of each row whose next token is learnt; may be empty
    packed_label_ids: Tensor  # int64 [labels]: that next token
    is_condition: Sequence[bool] = ()  # of each picture of latents; () where all are targets


class Draws(NamedTuple):
    """Every random number of one training step on a batch."""

    timesteps: Tensor  # fp32 [M] in (0, 1): how far each target is on its way from data (0) to noise (1)
    noise_seed: int  # the noise of latent token g in channel c is a function of (noise_seed, g, c)
    posterior: tuple[Tensor, ...] = ()  # for each target, then each condition of latents, normal fp32 [z, h, w]
    noise: Tensor | None = None  # [G, C]: the noise itself, where it was recorded; noise_seed is not read then

    def to(self, device: torch.device | str) -> "Draws":
        return Draws(
            to_device(self.timesteps, device),
            self.noise_seed,
            tuple(to_device(each, device) for each in self.posterior),
            None if self.noise is None else to_device(self.noise, device),
        )


class Clean(NamedTuple):
    """Where conditions that are latents stand in the generation stream, among the targets.

    T target tokens and then K tokens of conditions come in; the stream has them in the order of the pack.
    """

    token_order: Tensor  # int64 [T + K]: of each row of the stream, the number of its token
    picture_order: Tensor  # int64 [pictures]: of each picture of the stream, its number among targets, then conditions
    target_rows: Tensor  # int64 [T]: rows of the stream that are targets, which alone are predicted
    pictures: int  # how many conditions there are

    def to(self, device: torch.device | str) -> "Clean":
        order, pictures, rows = (to_device(each, device) for each in self[:3])
        return Clean(order, pictures, rows, self.pictures)


@dataclass(frozen=True)
class BagelBatch:
    """One pack, its rows sorted into the two streams.

    Of its pictures it holds either the pixels, which the frozen encoders have still to read (`conditions` or `patches`,
    and `targets`), or what the encoders made of them (`features` and `latents`). Read from a cache, targets come as the
    `moments` of their distributions, of which the batch's own noise draws the latents.

    With model.condition=generation, conditions are latents without noise: `latent_conditions` become
    `condition_latents`, and their moments stand behind those of the targets. G counts their rows too, where it is not
    said of targets. A picture that is edited is a condition of both kinds.
    """

    plan: AttentionPlan
    und_rows: Tensor  # int64 [U]: packed position of each row of the understanding stream
    gen_rows: Tensor  # int64 [G]: packed position of each row of the generation stream
    und_positions: Tensor  # int64 [U]: position in the rotary embedding
    gen_positions: Tensor  # int64 [G]: position in the rotary embedding
    text_ids: Tensor  # int64 [text rows]: token ids of prompts and of all markers; always on the host
    text_rows: Tensor  # int64 [text rows]: row of the understanding stream of each
    vit_rows: Tensor  # int64 [V]: row of the understanding stream of each patch
    vit_position_ids: Tensor  # int64 [V]: entry of the ViT's position table
    vit_segments: Varlen  # the patches of each condition, which attend to each other in the ViT
    latent_position_ids: Tensor  # int64 [G]: entry of the latents' position table
    target_index: Tensor  # int64 [G of targets]: number of the target that each of its tokens belongs to
    latent_cu_seqlens: Tensor  # int64 [pictures + 1]: first latent token of each picture of the stream, then G
    latent_shapes: tuple[tuple[int, int], ...]  # (rows, columns) of each target, in latent tokens
    target_tasks: tuple[str, ...]  # [M]: task of each target, "reca" or "t2i"
    label_rows: Tensor | None  # int64 [labels]: rows of the understanding stream whose next token is learnt
    labels: Tensor | None  # int64 [labels]: that next token
    conditions: tuple[Tensor, ...] = ()  # uint8 [H, W, 3] each; the device cuts them into patches
    latent_conditions: tuple[Tensor, ...] = ()  # uint8 [H, W, 3] each; the VAE encodes them, as it does targets
    patches: Tensor | None = None  # [V, numbers of a patch]: recorded patches, in place of conditions
    targets: tuple[Tensor, ...] = ()  # uint8 [H, W, 3] each; the VAE encodes them on the device
    features: Tensor | None = None  # [V, width of the ViT]: what the ViT made of the conditions
    latents: Tensor | None = None  # [G of targets, C]: what the VAE made of the targets, as latent tokens
    clean: Clean | None = None  # where conditions that are latents stand; None where there are none
    condition_latents: Tensor | None = None  # [K, C]: what the VAE made of the conditions, where they are latents
    moments: tuple[Tensor, ...] = ()  # fp32 [2z, h, w] each, in place of targets: means, then logarithms of variances
    draws: Draws | None = None  # None in a batch of sampling, which no loss is taken of

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
        """The batch with every tensor but `text_ids` on `device`. The host does not wait for the copies."""
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor) and f.name != "text_ids":
                moved[f.name] = to_device(value, device)
            elif isinstance(value, (Varlen, AttentionPlan, Draws, Clean)):
                moved[f.name] = value.to(device)
        for name in ("conditions", "latent_conditions", "targets", "moments"):
            moved[name] = tuple(to_device(image, device) for image in getattr(self, name))
        return replace(self, **moved)


def make_batch(
    packed: PackedSequence,
    *,
    conditions: Sequence[Tensor] = (),
    latent_conditions: Sequence[Tensor] = (),
    targets: Sequence[Tensor] = (),
    features: Tensor | None = None,
    moments: Sequence[Tensor] = (),
    draws: Draws | None = None,
    past_lengths: Sequence[int] | None = None,
) -> BagelBatch:
    """Sort the rows of a packed sequence into the two streams.

    Args:
        packed: the sequence.
        conditions, latent_conditions, targets: pictures uint8 [H, W, 3], in the order of their tokens.
        features, moments: what the encoders made of them, as in `BagelBatch`, in place of the pictures.
        draws: the random numbers of the step; None where no loss is taken.
        past_lengths: in sampling, how many rows of each sample went through the decoder before, so that only their keys
            and values are left; None for none.

    Raises:
        ValueError: the sequence is none that this code can run. The message says why.
    """
    total = sum(packed.sample_lens)
    is_gen = torch.zeros(total, dtype=torch.bool)
    is_gen[packed.packed_vae_token_indexes] = True
    layout = build_layout(packed.sample_lens, packed.split_lens, packed.attn_modes, is_gen, past_lengths)

    known = is_gen.clone()
    known[packed.packed_text_indexes] = known[packed.packed_vit_token_indexes] = True
    if not known.all():
        row = int(known.logical_not().nonzero()[0])
        raise ValueError(f"row {row} of the packed sequence is neither text nor ViT nor latent")

    # Latents, noise and positions are given in the order of packed_vae_token_indexes, and the stream is in the order of
    # the sequence. If the two differed, tokens would get each other's noise.
    if not torch.equal(layout.gen_rows, packed.packed_vae_token_indexes):
        raise ValueError("packed_vae_token_indexes: latent tokens must be in packed order")
    shapes = tuple((int(rows), int(columns)) for rows, columns in packed.patchified_vae_latent_shapes)
    areas = torch.tensor([rows * columns for rows, columns in shapes], dtype=torch.int64)
    is_condition = torch.tensor(packed.is_condition or [False] * len(shapes), dtype=torch.bool)
    clean, target_areas = _clean(areas, is_condition), areas[~is_condition]
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
        target_index=torch.arange(len(target_areas)).repeat_interleave(target_areas),
        latent_cu_seqlens=torch.cat((areas.new_zeros(1), areas.cumsum(0))),
        latent_shapes=tuple(
            shape for shape, without_noise in zip(shapes, is_condition, strict=True) if not without_noise
        ),
        clean=clean,
        target_tasks=tuple(packed.target_tasks),
        label_rows=stream_row[packed.ce_loss_indexes] if has_labels else None,
        labels=packed.packed_label_ids if has_labels else None,
        conditions=tuple(conditions),
        latent_conditions=tuple(latent_conditions),
        patches=packed.packed_vit_tokens,
        targets=tuple(targets),
        features=features,
        moments=tuple(moments),
        draws=draws,
    )


def _clean(areas: Tensor, is_condition: Tensor) -> Clean | None:
    """Where conditions stand among pictures of latents with these numbers of tokens; None where there are none."""
    if not is_condition.any():
        return None

    def order(condition: Tensor) -> Tensor:
        """Of each place, its number when targets come before conditions."""
        return torch.argsort(torch.argsort(condition.to(torch.int8), stable=True))

    tokens = is_condition.repeat_interleave(areas)
    return Clean(order(tokens), order(is_condition), tokens.logical_not().nonzero()[:, 0], int(is_condition.sum()))
