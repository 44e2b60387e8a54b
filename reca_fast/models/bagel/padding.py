"""Rows that nothing sees, at the end of both streams: the layers then meet few different sizes.

Such a row is an attention segment without keys, so it attends to nothing and nobody attends to it. It begins as zeros
and stays zero through all layers; behind them it is cut off. No loss, no gradient and no other row depends on it.
"""

import torch.nn.functional as F
from torch import Tensor

from reca_fast.kernels import Varlen

from .layers import AttentionPlan


def pad_plan(plan: AttentionPlan, und: int, gen: int, multiple: int) -> AttentionPlan:
    """The plan of streams whose numbers of rows are rounded up to a multiple.

    Captions alone have no markers of a target, after which the rows of the understanding stream could end: they stay as
    they are, and so does a generation stream without rows.

    Args:
        plan: on the CPU, of a batch of training.
        und, gen: rows of the two streams.
        multiple: 0 leaves the plan as it is.
    """
    if multiple == 0 or plan.markers is None or plan.generation is None or plan.target_keys is None:
        return plan
    und_padding, gen_padding = -und % multiple, -gen % multiple

    def moved(keys: Tensor | None) -> Tensor | None:
        """Rows of the key bank, in which latents stand behind the understanding rows."""
        return None if keys is None else keys + (keys >= und) * und_padding

    return plan._replace(
        markers=_with_blind_rows(plan.markers, und_padding),
        generation=_with_blind_rows(plan.generation, gen_padding),
        target_keys=moved(plan.target_keys),
        generation_keys=moved(plan.generation_keys),
        full_keys=moved(plan.full_keys),
        causal_keys=moved(plan.causal_keys),
        und_padding=und_padding,
        gen_padding=gen_padding,
    )


def _with_blind_rows(segments: Varlen, rows: int) -> Varlen:
    """The segments, and one more whose queries see no key."""
    queries, keys = segments.cu_seqlens_q, segments.cu_seqlens_k
    return segments._replace(
        cu_seqlens_q=F.pad(queries, (0, 1), value=int(queries[-1]) + rows),
        cu_seqlens_k=F.pad(keys, (0, 1), value=int(keys[-1])),
        max_seqlen_q=max(segments.max_seqlen_q, rows),
    )


def padded(rows: Tensor, padding: int) -> Tensor:
    """[N, ...] -> [N + padding, ...], with zeros behind."""
    return F.pad(rows, (*(0, 0) * (rows.dim() - 1), 0, padding)) if padding else rows
