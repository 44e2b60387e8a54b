"""Show-o's loss on masked image tokens: the head's linear layer and its cross-entropy, with all gradients.

"real" is the authors' objective over the whole vocabulary; "codes" normalises over the image codebook only.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ops.case import Case, Gate, Inputs, Step, gradients, variant
from reca_fast.kernels.fused_linear_cross_entropy.contract import fused_linear_cross_entropy
from reca_fast.kernels.fused_linear_cross_entropy.ragged_matmul import (
    Counted,
    launch_gathered_logits,
    launch_gathered_outer,
    launch_scattered_product,
)
from reca_fast.kernels.fused_linear_cross_entropy.row_kernels import launch_cross_entropy_rows
from reca_fast.kernels.fused_linear_cross_entropy.settings import Settings

VOCABULARY, FIRST_CODE, CODES = 58_498, 50_305, 8192
MASKED = 0.6366  # of the image tokens, averaged over Show-o's cosine schedule


def make_inputs(
    shape: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    """Labels are image codes, on the CPU, where the data loader masks them."""
    rows, dim, vocabulary, first, codes = (shape[name] for name in ("rows", "dim", "vocabulary", "first", "codes"))
    host = torch.Generator().manual_seed(generator.initial_seed())
    labels = torch.randint(first, first + codes, (rows,), generator=host)
    labels[torch.randperm(rows, generator=host)[round(MASKED * rows) :]] = -100

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*size, generator=generator, device=device)).to(dtype).requires_grad_()

    return {
        "hidden_states": normal(rows, dim),
        "weight": normal(vocabulary, dim, scale=dim**-0.5),
        "labels": labels,
        "vocab_range": (first, first + codes) if shape["in_range"] else None,
    }


def ours(inputs: Inputs) -> list[Tensor]:
    loss = fused_linear_cross_entropy(
        inputs["hidden_states"], inputs["weight"], inputs["labels"], vocab_range=inputs["vocab_range"]
    )
    return gradients(loss, inputs)


def eager(inputs: Inputs) -> list[Tensor]:
    """All logits of all rows, in fp32, as the authors' autocast has it; for a range, of the columns in it."""
    hidden_states, weight = inputs["hidden_states"], inputs["weight"]
    logits = F.linear(hidden_states, weight).float()
    labels = inputs["labels"].to(logits.device)
    if inputs["vocab_range"] is not None:
        start, stop = inputs["vocab_range"]
        logits, labels = logits[:, start:stop], torch.where(labels == -100, labels, labels - start)
    return gradients(F.cross_entropy(logits.contiguous(), labels, ignore_index=-100), inputs)


def _ranged(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """weight and labels for implementations that know no range: a slice of the weight."""
    labels = inputs["labels"].to(inputs["weight"].device)
    if inputs["vocab_range"] is None:
        return inputs["weight"], labels
    start, stop = inputs["vocab_range"]
    return inputs["weight"][start:stop], torch.where(labels == -100, labels, labels - start)


def _liger(apply: Callable[..., Any], inputs: Inputs) -> list[Tensor]:
    weight, labels = _ranged(inputs)
    result = apply(inputs["hidden_states"], weight, labels)
    return gradients(result[0] if isinstance(result, tuple) else result, inputs)


def _torch(inputs: Inputs) -> list[Tensor]:
    weight, labels = _ranged(inputs)
    return gradients(F.linear_cross_entropy(inputs["hidden_states"], weight, labels), inputs)


def _plain(function: Callable[..., Tensor], inputs: Inputs) -> list[Tensor]:
    weight, labels = _ranged(inputs)
    return gradients(function(inputs["hidden_states"], weight, labels), inputs)


def peers() -> dict[str, Step]:
    found: dict[str, Step] = {}
    if hasattr(F, "linear_cross_entropy"):
        found["torch.linear_cross_entropy"] = _torch
    with suppress(ImportError):
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        found["liger"] = partial(_liger, LigerFusedLinearCrossEntropyFunction.apply)
    with suppress(ImportError):
        from cut_cross_entropy import linear_cross_entropy

        found["cce"] = partial(_plain, linear_cross_entropy)
    with suppress(ImportError):  # quack-kernels: Hopper and newer, vocabularies that 128 divides
        from quack.linear_cross_entropy import chunked_linear_cross_entropy

        found["quack"] = partial(_plain, chunked_linear_cross_entropy)
    return found


def _valid(rows: int) -> int:
    return round(MASKED * rows)


def sizes(shape: Mapping[str, int]) -> dict[str, int]:
    classes = shape["codes"] if shape["in_range"] else shape["vocabulary"]
    return {"rows": _valid(shape["rows"]), "hidden_size": shape["dim"], "classes": classes}


def compile_all() -> None:
    """The whole odd vocabulary and the codes, a slice of the weight. fp16 differs from bf16 in conversions alone, so
    there the slice will do; fp32 has products of its own.
    """
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    labels, weights, alike = torch.zeros(4, dtype=torch.int64), torch.ones(4), torch.ones(()).expand(4)
    counted_rows = Counted(torch.arange(4), labels[0], 0)
    count = counted_rows.number

    def rows(
        dtype: torch.dtype, classes: int, scale: Tensor | None, counted: Tensor | None, biased: bool, smoothing: float
    ) -> None:
        """Without `counted`: labels on the CPU; with it: on a GPU. Without `scale`: no gradient."""
        width, start = -(-classes // 64) * 64, FIRST_CODE if classes == CODES else 0
        bias, buffer = torch.empty(width) if biased else None, torch.empty(4, width, dtype=dtype)
        settings = Settings(start, start + classes, -100, smoothing, 1e-4, 2**28)
        launch_cross_entropy_rows(buffer, classes, bias, labels, scale, settings, counted)

    for classes in (VOCABULARY, CODES):
        rows(bf16, classes, alike, None, False, 0.0)
        rows(bf16, classes, weights, count, False, 0.0)
        rows(bf16, classes, weights, count, True, 0.1)
        rows(fp32, classes, weights, count, False, 0.0)
    rows(bf16, VOCABULARY, weights, count, True, 0.0)
    rows(bf16, CODES, weights, None, False, 0.1)
    rows(fp16, VOCABULARY, weights, count, False, 0.0)
    rows(fp16, CODES, weights, None, True, 0.1)
    with variant("without gradient"):
        rows(bf16, VOCABULARY, None, None, False, 0.0)
        rows(bf16, CODES, None, count, True, 0.1)

    def products(dtype: torch.dtype, coded: bool, *totals: tuple[torch.dtype, bool]) -> None:
        """The weight gradient of one chunk of rows has its own dtype; of several, the first begins an fp32 sum."""
        weight = torch.empty(VOCABULARY, 2048, dtype=dtype)
        weight = weight[FIRST_CODE : FIRST_CODE + CODES] if coded else weight
        x, buffer = torch.empty(4, 2048, dtype=dtype), torch.empty(4, -(-len(weight) // 64) * 64, dtype=dtype)
        launch_gathered_logits(x, weight, buffer, counted_rows)
        launch_scattered_product(buffer, weight, x, counted_rows)
        for total, add in totals:
            launch_gathered_outer(buffer, x, torch.empty(weight.shape, dtype=total), counted_rows, add)

    products(bf16, False, (fp32, False), (fp32, True))
    products(bf16, True, (bf16, False))
    products(fp16, True, (fp32, True))
    with variant("fp32"):
        products(fp32, False, (fp32, True))
        products(fp32, True, (fp32, False))


CASE = Case(
    name="fused_linear_cross_entropy",
    about="linear layer and cross-entropy of the rows that count, logits never whole, gradients in the same pass",
    shapes={
        "real": {
            "rows": 8 * 1024,
            "dim": 2048,
            "vocabulary": VOCABULARY,
            "first": FIRST_CODE,
            "codes": CODES,
            "in_range": 0,
        },
        "codes": {
            "rows": 8 * 1024,
            "dim": 2048,
            "vocabulary": VOCABULARY,
            "first": FIRST_CODE,
            "codes": CODES,
            "in_range": 1,
        },
        # As many classes per hidden channel as a tenth of the real case: peers take their chunks from that ratio.
        "small": {"rows": 256, "dim": 256, "vocabulary": 2_331, "first": 300, "codes": 1024, "in_range": 0},
    },
    inputs=make_inputs,
    ours=ours,
    eager=eager,
    sizes=sizes,
    compile=compile_all,
    gates={
        "cross_entropy_rows_kernel": Gate(64, 0.5),
        "cross_entropy_rows_kernel without gradient": Gate(64, 0.5, store_bits=32),  # one loss
        "gathered_matmul_kernel": Gate(255, 0.12, tensor_core=True),
        "gathered_outer_kernel": Gate(255, 0.12, tensor_core=True),
        # fp32 products are rounded to fp32, which no tensor core does.
        "gathered_matmul_kernel fp32": Gate(192, 0.12),
        "gathered_outer_kernel fp32": Gate(128, 0.25),
    },
    older_gates={"gathered_matmul_kernel fp32": Gate(192, 0.12, spill_bytes=4)},  # with more room it spills on sm_100
    peers=peers(),
    goal="3.8 TFLOP and 256 MB of logits for the whole vocabulary, 0.53 TFLOP and 100 MB for the codes",
    max_launches=24,  # most of them on a few numbers per row: which rows count, the sum of their weights
    max_ratio=1.5,  # the logits in memory, over a minimum that knows none
)
