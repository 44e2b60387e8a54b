"""From a packed sequence to the order of its rows in the two streams, and the attention plan of these.

A row sees those rows of its own sample that come no later, and all rows of its own split if that is a full or a noise
split. Rows of a noise split are seen from inside that split alone (docs/models/bagel.md, "Who sees whom"). So all rows
of a split see the same earlier splits and their own, and a split is one segment of a varlen attention call.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reca_fast.kernels import Varlen

from .layers import AttentionPlan

CAUSAL, FULL, NOISE = 0, 1, 2
"""Modes of a split, as the parity cases number them. A prompt is CAUSAL, a condition FULL, a target NOISE. A condition
consists of vision patches, or of latents without noise, which are rows of the generation expert like those of a target.
"""


@dataclass(frozen=True)
class StreamLayout:
    """Where the rows of a packed sequence stand in the streams."""

    und_rows: Tensor  # int64 [U]: packed position of each row of the understanding stream
    gen_rows: Tensor  # int64 [G]: packed position of each row of the generation stream
    plan: AttentionPlan


class _Call:
    """The segments of one attention call, added split by split: rows that ask, and the rows whose keys they see.

    Rows are packed positions.
    """

    def __init__(self) -> None:
        self.queries: list[Tensor] = []
        self.keys: list[Tensor] = []

    def add(self, queries: Tensor, keys: Sequence[Tensor]) -> None:
        if len(queries):
            self.queries.append(queries)
            self.keys.append(torch.cat(list(keys)))

    def rows(self) -> Tensor:
        return torch.cat(self.queries) if self.queries else torch.zeros(0, dtype=torch.int64)

    def key_rows(self) -> Tensor:
        return torch.cat(self.keys) if self.keys else torch.zeros(0, dtype=torch.int64)

    def segments(self, causal: bool = False) -> Varlen | None:
        if not self.queries:
            return None
        return Varlen.from_lengths([len(q) for q in self.queries], [len(k) for k in self.keys], causal=causal)


def build_layout(
    sample_lens: Sequence[int],
    split_lens: Sequence[int],
    split_modes: Sequence[int],
    is_gen: Tensor,
    num_past: Sequence[int] | None = None,
) -> StreamLayout:
    """Sort the rows of a packed sequence into the two streams and plan their attention.

    Args:
        sample_lens: rows of each sample.
        split_lens: rows of each split, in order.
        split_modes: mode of each split: CAUSAL, FULL or NOISE.
        is_gen: bool [S], true for the latent tokens. They belong to the generation expert, all others to the
            understanding expert.
        num_past: for each sample, how many keys of it were computed before, in sampling. They stand first in the key
            bank (see `AttentionPlan`), sample by sample. None for none.

    Raises:
        ValueError: lengths do not add up, a latent token lies in a causal split, or a sample has two noise splits.
    """
    if sum(sample_lens) != len(is_gen) or sum(split_lens) != len(is_gen):
        raise ValueError(
            f"sample_lens add up to {sum(sample_lens)} and split_lens to {sum(split_lens)}, "
            f"the sequence has {len(is_gen)} rows"
        )
    full, causal, markers, gen = _Call(), _Call(), _Call(), _Call()
    splits = iter(zip(split_lens, split_modes, strict=True))
    past = list(num_past or [0] * len(sample_lens))
    past_start = start = 0
    has_clean = False
    for number, (sample_len, sample_past) in enumerate(zip(sample_lens, past, strict=True)):
        end, targets = start + sample_len, 0
        # Keys of the past have no packed position. Negative numbers stand for them until the key bank is numbered.
        visible = [torch.arange(past_start, past_start + sample_past) - sum(past)]
        past_start += sample_past
        while start < end:
            length, mode = next(splits)
            rows = torch.arange(start, start + length)
            latents = is_gen[start : start + length]
            if mode != NOISE:
                if latents.any() and mode == CAUSAL:
                    raise ValueError(f"sample {number}: latent tokens in a causal split")
                (full if mode == FULL else causal).add(rows[~latents], [*visible, rows])
                gen.add(rows[latents], [*visible, rows])
                has_clean = has_clean or bool(latents.any())
                visible.append(rows)
            else:
                targets += 1
                markers.add(rows[~latents], [*visible, rows])
                gen.add(rows[latents], [*visible, rows])
            start += length
        if start != end or targets > 1:
            raise ValueError(f"sample {number}: splits cross its end, or it has {targets} noise splits (at most 1)")
    und_rows, gen_rows = torch.cat((full.rows(), causal.rows(), markers.rows())), gen.rows()

    # From packed positions to rows of the key bank: [past | understanding rows | generation rows].
    bank_row = torch.empty(len(is_gen), dtype=torch.int64)
    bank_row[torch.cat((und_rows, gen_rows))] = torch.arange(len(is_gen)) + sum(past)

    def bank(keys: Tensor) -> Tensor:
        return torch.where(keys < 0, keys + sum(past), bank_row[keys.clamp(min=0)])

    full_keys = bank(full.key_rows())
    own_rows = torch.equal(full_keys, torch.arange(len(full.rows())))
    gen_keys = bank(gen.key_rows()) if gen.queries else None
    marker_keys = bank(markers.key_rows()) if markers.queries else None
    plan = AttentionPlan(
        full=full.segments(),
        full_keys=None if own_rows else full_keys,
        causal=causal.segments(causal=True),
        causal_keys=bank(causal.key_rows()),
        markers=markers.segments(),
        generation=gen.segments(),
        target_keys=marker_keys if has_clean else gen_keys,
        num_full=len(full.rows()),
        num_causal=len(causal.rows()),
        generation_keys=gen_keys if has_clean else None,
    )
    return StreamLayout(und_rows, gen_rows, plan)
