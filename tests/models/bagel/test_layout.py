"""The attention plan of a packed batch means exactly the authors' mask rule, written here from its one sentence."""

import random
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from reca_fast.models.bagel.config import LLMConfig
from reca_fast.models.bagel.layers import MoTLayer, Stream
from reca_fast.models.bagel.layout import CAUSAL, FULL, NOISE, StreamLayout, build_layout
from tests.oracles.bagel_mask import mask_rule

pytestmark = pytest.mark.usefixtures("one_thread")

CLEAN = 3
"""A full split of latents without noise between two markers: a condition of the generation encoder."""
KINDS = {  # modes of the splits of one sample
    "reca": [FULL, CAUSAL, NOISE],
    "reca without prompt": [FULL, NOISE],
    "t2i": [CAUSAL, NOISE],
    "t2i without prompt": [NOISE],
    "i2t": [FULL, CAUSAL],
    "two pictures": [FULL, CAUSAL, FULL, CAUSAL, NOISE],
    "latents": [CLEAN, CAUSAL, NOISE],
    "latents without prompt": [CLEAN, NOISE],
    "caption of latents": [CLEAN, CAUSAL],
    "both encoders": [CLEAN, FULL, CAUSAL, NOISE],
}


class Pack(NamedTuple):
    samples: list[list[tuple[int, int]]]  # (length, mode) of every split of every sample
    is_gen: Tensor  # bool [S]; a noise split holds latents between two markers
    past: list[int]  # keys of each sample that exist already

    def layout(self) -> StreamLayout:
        splits = [split for sample in self.samples for split in sample]
        lengths = [sum(length for length, _ in sample) for sample in self.samples]
        return build_layout(lengths, [n for n, _ in splits], [mode for _, mode in splits], self.is_gen, self.past)


def random_pack(kinds: list[str], seed: int, past: bool = False) -> Pack:
    draw = random.Random(seed)
    samples = [[(draw.randint(3, 8), mode) for mode in KINDS[kind]] for kind in kinds]
    is_gen = []
    for length, mode in (split for sample in samples for split in sample):
        is_gen += [mode in (NOISE, CLEAN) and 0 < row < length - 1 for row in range(length)]
    samples = [[(length, FULL if mode == CLEAN else mode) for length, mode in sample] for sample in samples]
    return Pack(samples, torch.tensor(is_gen), [draw.randint(0, 4) if past else 0 for _ in samples])


def implied_mask(layout: StreamLayout, past: int) -> Tensor:
    """The same mask, read off the attention calls of a plan: which key each query row is given, in packed order."""
    plan, und_rows, gen_rows = layout.plan, layout.und_rows, layout.gen_rows
    order = torch.cat((und_rows, gen_rows))
    column = torch.cat((torch.arange(past), order + past))  # of each row of the key bank
    full, causal, markers = und_rows.tensor_split((plan.num_full, plan.num_full + plan.num_causal))
    own = torch.arange(plan.num_full) + past
    mask = torch.zeros(len(order), past + len(order), dtype=torch.bool)
    for queries, segments, keys in (
        (full, plan.full, own if plan.full_keys is None else plan.full_keys),
        (causal, plan.causal, plan.causal_keys),
        (markers, plan.markers, plan.target_keys),
        (gen_rows, plan.generation, plan.target_keys if plan.generation_keys is None else plan.generation_keys),
    ):
        if segments is None:
            assert len(queries) == 0
            continue
        q_lens, k_lens = segments.cu_seqlens_q.diff().tolist(), segments.cu_seqlens_k.diff().tolist()
        assert (segments.max_seqlen_q, segments.max_seqlen_k) == (max(q_lens), max(k_lens))
        for q, k in zip(queries.split(q_lens), column[keys].split(k_lens), strict=True):
            assert len(set(k.tolist())) == len(k), "no key twice"
            for place, row in enumerate(q):
                mask[row, k[: len(k) - len(q) + 1 + place] if segments.causal else k] = True
    return mask


@pytest.mark.parametrize("past", [False, True], ids=["whole", "with past keys"])
@pytest.mark.parametrize("kinds", [*([kind] for kind in KINDS), list(KINDS), list(KINDS)[::-1]], ids="+".join)
def test_plan_is_the_mask_rule(kinds: list[str], past: bool) -> None:
    for seed in range(3):
        pack = random_pack(kinds, seed, past)
        layout = pack.layout()
        assert torch.equal(implied_mask(layout, sum(pack.past)), mask_rule(pack.samples, pack.past))
        assert torch.equal(torch.cat((layout.und_rows, layout.gen_rows)).sort()[0], torch.arange(len(pack.is_gen)))
        assert torch.equal(layout.gen_rows, pack.is_gen.nonzero().flatten())


def test_plan_is_the_recorded_mask(case_folder) -> None:
    """`attention_allowed.N` is the authors' own mask of sample N; across samples nothing is allowed."""
    recorded = load_file(case_folder / "inputs.safetensors")
    lengths = recorded["sample_lens"].tolist()
    is_gen = torch.zeros(sum(lengths), dtype=torch.bool)
    is_gen[recorded["packed_vae_token_indexes"]] = True
    layout = build_layout(lengths, recorded["split_lens"].tolist(), recorded["attn_modes"].tolist(), is_gen)
    samples = [recorded[f"attention_allowed.{number}"] for number in range(len(lengths))]
    assert torch.equal(implied_mask(layout, 0), torch.block_diag(*samples).bool())


@torch.no_grad()
def test_a_prefix_computed_first_changes_nothing() -> None:
    """A layer over a whole sample, and over its splits one after another with the earlier ones as past."""
    torch.manual_seed(0)
    layer = MoTLayer(LLMConfig(24, 32, 1, 4, 2, 8))
    splits = [(4, FULL), (5, CAUSAL), (3, FULL), (2, CAUSAL)]
    und, angles = torch.randn(14, 24), torch.rand(14, 3).repeat(1, 2)

    def run(rows: slice, splits: list[tuple[int, int]], past=None):
        length = rows.stop - rows.start
        pack = Pack([splits], torch.zeros(length, dtype=torch.bool), [rows.start])
        layout = pack.layout()
        order = layout.und_rows + rows.start
        stream = Stream(und[order], angles[order].cos(), angles[order].sin())
        out, _, kv = layer(stream, None, layout.plan, "sdpa", past)
        back = torch.argsort(layout.und_rows)
        return out[back], [x[back] for x in kv]

    whole, _ = run(slice(0, 14), splits)
    past, parts, start = None, [], 0
    for length, mode in splits:
        out, kv = run(slice(start, start + length), [(length, mode)], past)
        past = kv if past is None else [torch.cat(pair) for pair in zip(past, kv, strict=True)]
        parts.append(out)
        start += length
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize(
    ("samples", "splits", "modes", "latents", "message"),
    [
        ([8], [4, 4], [NOISE, NOISE], [1, 2, 5, 6], "sample 0: .* 2 noise splits"),
        ([4, 4], [4, 4], [NOISE, CAUSAL], [1, 2, 6], "sample 1: latent tokens in a causal split"),
        ([4, 3], [4, 4], [FULL, FULL], [], "sample_lens add up to 7 and split_lens to 8, the sequence has 8"),
        ([4, 4], [4, 3], [FULL, FULL], [], "sample_lens add up to 8 and split_lens to 7, the sequence has 8"),
        ([3, 5], [4, 4], [FULL, FULL], [], "sample 0: splits cross its end"),
    ],
)
def test_impossible_packs_are_refused(samples, splits, modes, latents, message) -> None:
    is_gen = torch.zeros(8, dtype=torch.bool)
    is_gen[latents] = True
    with pytest.raises(ValueError, match=message):
        build_layout(samples, splits, modes, is_gen)
