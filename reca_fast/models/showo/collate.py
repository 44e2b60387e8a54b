"""From samples to a batch, with every random number of a step: which codes of each target the model does not see."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from reca_fast.sample import I2T, RECA, Sample

from .batch import CODES, VECTORS_SEEN, VECTORS_UNDERSTOOD, ShowoBatch, make_batch
from .rows import RowMaker


def masked_codes(ratio: Tensor, order: Tensor, least: float = 0.0) -> Tensor:
    """Which codes of a picture are masked, by the cosine schedule of MaskGIT.

    Args:
        ratio: 0-d in [0, 1): cos(pi/2 * ratio) of the codes are masked, one at least.
        order: [N] in [0, 1): decides which; the codes whose rank the authors' argsort states are taken.
        least: the smallest share of codes that is masked.

    Returns:
        bool [N].
    """
    share = torch.cos(ratio * math.pi * 0.5).clamp(min=least)
    count = (len(order) * share).round().clamp(min=1)
    return order.argsort() < count


def collate(
    samples: Sequence[Sample], maker: RowMaker, stride: int, draw: torch.Generator, *, clip: bool
) -> ShowoBatch:
    """The training batch of a pack.

    The random numbers are drawn in a fixed order, which a change would break for every run that is resumed: for each
    target the share of its codes that is masked, then one number for each of its codes.

    Args:
        maker: makes the rows.
        stride: pixels of a code along one side.
        draw: the generator of this pack.
        clip: whether CLIP sees the conditions; otherwise they are read as codes.
    """
    spans, masks, tasks, detached = [], [], [], []
    for sample in samples:
        given, target = num_codes(sample.condition_size, stride), num_codes(sample.target_size, stride)
        spans.append(maker.spans(given, target, sample.text))
        if target is not None:
            ratio, order = torch.rand((), generator=draw), torch.rand(target, generator=draw)
            masks.append(masked_codes(ratio, order))
            tasks.append(next(task for task in sample.tasks if task != I2T))
        # What a reconstruction reads through CLIP has no gradient, as the authors have it.
        detached.append(clip and given is not None and target is not None)
    return make_batch(spans, masks=masks, tasks=tasks, detached=detached, pictures=pictures_of(samples, clip=clip))


def pictures_of(samples: Sequence[Sample], *, clip: bool) -> dict[str, object]:
    """The fields of a batch that hold the pictures of its samples, or what a cache held in their place."""
    understood = [_is_understood(sample) for sample in samples if sample.condition_size is not None]
    encoded = [sample.encoded_condition for sample in samples if sample.encoded_condition is not None]
    names = [VECTORS_UNDERSTOOD if each else VECTORS_SEEN for each in understood] if clip else [CODES] * len(encoded)
    stored = [each.tensors[name] for each, name in zip(encoded, names, strict=True)] if encoded else []
    codes = [s.encoded_target.tensors[CODES] for s in samples if s.encoded_target is not None]
    return {
        "conditions": tuple(sample.condition for sample in samples if sample.condition is not None),
        "understood": tuple(understood),
        "targets": tuple(sample.target for sample in samples if sample.target is not None),
        "vectors": torch.cat(stored) if stored and clip else None,
        "given": torch.cat(stored).long() if stored and not clip else None,
        "codes": torch.cat(codes).long() if codes else None,
    }


def _is_understood(sample: Sample) -> bool:
    return sample.target_size is None and RECA not in sample.tasks and I2T in sample.tasks


def num_codes(size: tuple[int, int] | None, stride: int) -> int | None:
    """How many codes a picture of this width and height has; None for no picture."""
    return None if size is None else size[0] // stride * (size[1] // stride)
