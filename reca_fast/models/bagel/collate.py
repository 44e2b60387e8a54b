"""From samples to a batch: where BAGEL puts markers, positions and labels, and the random numbers of the step."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reca_fast.data.inputs import Size
from reca_fast.errors import UserError
from reca_fast.objectives import shifted_logit_normal
from reca_fast.sample import I2T, RECA, Encoded, Sample

from .batch import FEATURES, MOMENTS, BagelBatch, Draws, PackedSequence, make_batch
from .config import BagelConfig
from .layout import CAUSAL, FULL, NOISE
from .tokenizer import BagelTokenizer


class Source(NamedTuple):
    """A picture that is edited, as the condition of a prefix. It stands there twice: first as latents without noise,
    then as vision patches. Both pictures are multiples of a token's side, and their sizes may differ.
    """

    latents: Tensor  # uint8 [H, W, 3], which the VAE encodes
    patches: Tensor  # uint8 [h, w, 3], which the ViT sees
    normal: Tensor  # fp32 [z, H / 8, W / 8], standard normal: the draw from the distribution that the VAE gives


Prefix = tuple[Tensor | Source | None, Sequence[int] | None]
"""What a picture is drawn from: a condition, uint8 [H, W, 3] or a picture that is edited, and the token ids of a
prompt. Either may be None.
"""


def grid_positions(rows: int, columns: int, side: int, device: torch.device | str = "cpu") -> Tensor:
    """Entries of a position table of side x side for a picture of rows x columns tokens.

    Returns:
        int64 [rows * columns], row by row: row * side + column. A small picture uses the table's top left corner.
    """
    return (torch.arange(rows, device=device)[:, None] * side + torch.arange(columns, device=device)).flatten()


class _Writer:
    """A packed sequence that grows split by split. Every split begins and ends with a marker token.

    `condition`, `source`, `text` and `target` append splits at a position of the rotary embedding; all but the last
    return the position that follows. `end_sample` closes a sample, and `packed` gives the whole sequence.
    """

    def __init__(self, config: BagelConfig, tokenizer: BagelTokenizer, as_latents: bool = False) -> None:
        self.config, self.tokenizer, self.as_latents = config, tokenizer, as_latents
        self.length = 0
        self.sample_lens: list[int] = []
        self.split_lens: list[int] = []
        self.modes: list[int] = []
        self.positions: list[Tensor] = []
        self.text_ids: list[int] = []
        self.text_rows: list[int] = []
        self.vit_rows: list[Tensor] = []
        self.vit_positions: list[Tensor] = []
        self.latent_rows: list[Tensor] = []
        self.latent_positions: list[Tensor] = []
        self.latent_shapes: list[tuple[int, int]] = []
        self.is_condition: list[bool] = []
        self.label_rows: list[int] = []
        self.labels: list[int] = []

    def _split(self, mode: int, positions: Tensor) -> None:
        self.split_lens.append(len(positions))
        self.modes.append(mode)
        self.positions.append(positions)
        self.length += len(positions)

    def _picture(self, mode: int, tokens: int, position: int) -> Tensor:
        """Append a split of `tokens` picture tokens between two markers, all at one position.

        Returns:
            int64 [tokens]: the packed positions of the picture tokens.
        """
        start = self.length
        self.text_ids += [self.tokenizer.start_of_image, self.tokenizer.end_of_image]
        self.text_rows += [start, start + tokens + 1]
        self._split(mode, torch.full((tokens + 2,), position))
        return torch.arange(start + 1, start + 1 + tokens)

    def condition(self, size: Size, position: int) -> int:
        if self.as_latents:
            stride = self.config.latent_stride
            self._latents(FULL, size[1] // stride, size[0] // stride, position, "data.condition_resize")
            return position + 1
        return self._patches(size, position)

    def _patches(self, size: Size, position: int) -> int:
        patch = self.config.vit.patch_size
        rows, columns = size[1] // patch, size[0] // patch
        side = self.config.glue.vit_max_num_patch_per_side
        _check_grid(rows, columns, side, "data.condition_resize", patch)
        self.vit_rows.append(self._picture(FULL, rows * columns, position))
        self.vit_positions.append(grid_positions(rows, columns, side))
        return position + 1

    def source(self, source: Source, position: int) -> int:
        """Two splits: what the generation side knows of a picture that is edited, then what the ViT sees of it."""
        height, width, _ = source.latents.shape
        stride = self.config.latent_stride
        self._latents(FULL, height // stride, width // stride, position, "data.target_resize")
        return self._patches((source.patches.shape[1], source.patches.shape[0]), position + 1)

    def text(self, ids: Sequence[int], position: int, said: Sequence[tuple[int, int]] = ()) -> int:
        start = self.length
        marked = [self.tokenizer.bos, *ids, self.tokenizer.eos]
        self.text_ids += marked
        self.text_rows += range(start, start + len(marked))
        for first, stop in said:  # each token is predicted by the row before it, the first one by the marker in front
            stop += stop == len(ids)  # and the end marker by the last token
            self.label_rows += range(start + first, start + stop)
            self.labels += marked[first + 1 : stop + 1]
        self._split(CAUSAL, torch.arange(position, position + len(marked)))
        return position + len(marked)

    def target(self, rows: int, columns: int, position: int) -> None:
        self._latents(NOISE, rows, columns, position, "data.target_resize")

    def _latents(self, mode: int, rows: int, columns: int, position: int, option: str) -> None:
        side = self.config.glue.max_latent_size
        _check_grid(rows, columns, side, option, self.config.latent_stride)
        self.latent_rows.append(self._picture(mode, rows * columns, position))
        self.latent_positions.append(grid_positions(rows, columns, side))
        self.latent_shapes.append((rows, columns))
        self.is_condition.append(mode == FULL)

    def end_sample(self) -> None:
        self.sample_lens.append(self.length - sum(self.sample_lens))

    def packed(self, target_tasks: Sequence[str]) -> PackedSequence:
        def joined(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)

        return PackedSequence(
            sample_lens=self.sample_lens,
            split_lens=self.split_lens,
            attn_modes=self.modes,
            packed_text_ids=torch.tensor(self.text_ids, dtype=torch.int64),
            packed_text_indexes=torch.tensor(self.text_rows, dtype=torch.int64),
            packed_position_ids=joined(self.positions),
            packed_vit_tokens=None,  # the device cuts the pictures
            packed_vit_token_indexes=joined(self.vit_rows),
            packed_vit_position_ids=joined(self.vit_positions),
            vit_token_seqlens=[len(rows) for rows in self.vit_rows],
            packed_vae_token_indexes=joined(self.latent_rows),
            packed_latent_position_ids=joined(self.latent_positions),
            patchified_vae_latent_shapes=self.latent_shapes,
            target_tasks=target_tasks,
            ce_loss_indexes=torch.tensor(self.label_rows, dtype=torch.int64),
            packed_label_ids=torch.tensor(self.labels, dtype=torch.int64),
            is_condition=self.is_condition,
        )


def _check_grid(rows: int, columns: int, side: int, option: str, stride: int) -> None:
    """Raise UserError for a picture with more tokens along a side than the position table has entries."""
    if max(rows, columns) > side:
        raise UserError(
            f"A picture of {columns} x {rows} tokens exceeds the checkpoint's position table of {side} x {side}; "
            f"lower {option}.max_size to {side * stride} or less."
        )


def collate(
    samples: Sequence[Sample],
    config: BagelConfig,
    tokenizer: BagelTokenizer,
    draw: torch.Generator,
    *,
    as_latents: bool = False,
) -> BagelBatch:
    """The training batch of a pack, with every random number of the step drawn from `draw`.

    A sample consists of its condition (all at position 0), its prompt (one position for each token) and its target (all
    at the next position), as far as it has them. `as_latents` makes the condition one of the VAE's latents.

    Raises:
        UserError: a picture has more tokens along a side than the checkpoint's position table.
    """
    writer = _Writer(config, tokenizer, as_latents)
    stride, tasks, sizes = config.latent_stride, [], []
    for sample in samples:
        position = 0
        if sample.condition_size is not None:
            position = writer.condition(sample.condition_size, position)
        if sample.text is not None:
            position = writer.text(sample.text.ids, position, sample.text.said)
        if sample.target_size is not None:
            width, height = sample.target_size
            writer.target(height // stride, width // stride, position)
            tasks.append(next(task for task in sample.tasks if task != I2T))
            sizes.append(sample.target_size)
        writer.end_sample()
    encoded = [sample.encoded_condition for sample in samples]
    features = [] if as_latents else _stored(encoded, FEATURES)
    moments = _stored([sample.encoded_target for sample in samples], MOMENTS)
    conditions = [sample.condition_size for sample in samples if sample.condition_size is not None]
    pictures = [sample.condition for sample in samples if sample.condition is not None]
    return make_batch(
        writer.packed(tasks),
        conditions=[] if as_latents else pictures,
        latent_conditions=pictures if as_latents else [],
        targets=[sample.target for sample in samples if sample.target is not None],
        features=torch.cat(features) if features else None,
        moments=moments + (_stored(encoded, MOMENTS) if as_latents else []),
        draws=draw_step(sizes, config, draw, conditions if as_latents else ()),
    )


def _stored(pictures: Sequence[Encoded | None], name: str) -> list[Tensor]:
    """The tensor called `name` of each picture that comes encoded."""
    return [picture.tensors[name] for picture in pictures if picture is not None]


def draw_step(
    targets: Sequence[Size], config: BagelConfig, draw: torch.Generator, conditions: Sequence[Size] = ()
) -> Draws:
    """The random numbers of one step for targets, and conditions of latents, of these sizes in pixels.

    They are drawn in a fixed order, which a change would break for every run that is resumed: the timesteps, the seed
    of the noise, then for each target, and each condition, the noise with which its latents are drawn from the VAE.
    """
    normal = torch.randn(len(targets), generator=draw)
    seed = int(torch.randint(2**62, (), generator=draw))
    cell, channels = config.vae.downsample, config.vae.z_channels
    shapes = [(channels, height // cell, width // cell) for width, height in (*targets, *conditions)]
    posterior = tuple(torch.randn(shape, generator=draw) for shape in shapes)
    return Draws(shifted_logit_normal(normal, config.glue.timestep_shift), seed, posterior)


def collate_prefixes(
    prefixes: Sequence[Prefix],
    config: BagelConfig,
    tokenizer: BagelTokenizer,
    as_latents: bool = False,
) -> tuple[BagelBatch, list[int], list[int]]:
    """The batch of what comes before the targets in sampling: conditions and prompts alone.

    Args:
        prefixes: condition and prompt of each.
        as_latents: conditions are the VAE's latents, those that are edited excepted.

    Returns:
        The batch, the number of rows of each prefix, and the rotary position that follows each.
    """
    writer = _Writer(config, tokenizer, as_latents)
    following = []
    seen: list[Tensor] = []
    encoded: list[Tensor] = []
    normal: list[Tensor] = []
    for image, ids in prefixes:
        position = 0
        if isinstance(image, Source):
            position = writer.source(image, position)
            seen.append(image.patches)
            encoded.append(image.latents)
            normal.append(image.normal)
        elif image is not None:
            position = writer.condition((image.shape[1], image.shape[0]), position)
            (encoded if as_latents else seen).append(image)
        if ids is not None:
            position = writer.text(ids, position)
        following.append(position)
        writer.end_sample()
    draws = Draws(torch.zeros(0), 0, tuple(normal)) if normal else None
    batch = make_batch(writer.packed([]), conditions=seen, latent_conditions=encoded, draws=draws)
    return batch, writer.sample_lens, following


def collate_targets(
    shapes: Sequence[tuple[int, int]],
    positions: Sequence[int],
    past_lengths: Sequence[int],
    config: BagelConfig,
    tokenizer: BagelTokenizer,
) -> BagelBatch:
    """The batch of the targets alone in sampling, which attend to prefixes that were computed before.

    Args:
        shapes: (rows, columns) of each target, in latent tokens.
        positions: position of each target in the rotary embedding.
        past_lengths: number of rows of each target's prefix.
    """
    writer = _Writer(config, tokenizer)
    for (rows, columns), position in zip(shapes, positions, strict=True):
        writer.target(rows, columns, position)
        writer.end_sample()
    return make_batch(writer.packed([RECA] * len(shapes)), past_lengths=past_lengths)
