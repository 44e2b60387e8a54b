"""What this card can do at best: the copy and the matrix products that everything else is compared with."""

import torch

from bench.timing import interleaved

from .bagel import TOKENS_PER_PICTURE, real_config
from .report import Report

SHEET = {
    "H200": (4.8e12, 989e12),
    "H100 NVL": (3.9e12, 835e12),
    "H100 PCIe": (2.0e12, 756e12),
    "H100": (3.35e12, 989e12),
    "A100-SXM4-80GB": (2.039e12, 312e12),
    "B200": (8.0e12, 2250e12),
}
"""Part of the card's name -> bytes/s and dense bf16 FLOP/s of its data sheet."""
COPY_SHARE, PRODUCT_SHARE = 0.75, 0.5
"""What of the data sheet a healthy card reaches."""


def hand_in(report: Report) -> None:
    name = "" if report.rehearsal else torch.cuda.get_device_name(report.device)
    sheet = next((values for part, values in SHEET.items() if all(word in name for word in part.split())), None)
    report.attempt("copy", copies, report, sheet[0] if sheet else None)
    for title, sizes in products(report.rehearsal).items():
        report.attempt(title, product, report, title, sizes, sheet[1] if sheet else None)


def copies(report: Report, peak: float | None) -> None:
    size = 2**16 if report.rehearsal else 2**31
    source, target = (torch.zeros(size, dtype=torch.uint8, device=report.device) for _ in range(2))
    milliseconds = fastest(lambda: target.copy_(source), report)
    speed = 2 * size / milliseconds / 1e6
    if peak is None:
        report.figure("copy, read and written", speed, "GB/s")
    else:
        report.at_least("copy, read and written", speed, COPY_SHARE * peak / 1e9, "GB/s")


def products(tiny: bool) -> dict[str, tuple[int, int, int]]:
    """Name -> (m, k, n) of the generation stream of eight 1024 x 1024 pictures, forward and the weight's gradient."""
    llm = real_config(1, tiny=tiny).llm
    rows = 64 if tiny else 8 * (TOKENS_PER_PICTURE - 283)
    width, inner, heads = llm.hidden_size, llm.intermediate_size, llm.num_attention_heads * llm.head_dim
    keys = llm.num_key_value_heads * llm.head_dim
    square = 64 if tiny else 8192
    return {
        "square": (square, square, square),
        "q_proj and o_proj": (rows, width, heads),
        "k_proj and v_proj": (rows, width, keys),
        "gate_proj and up_proj": (rows, width, inner),
        "down_proj": (rows, inner, width),
        "gradient of down_proj's weight": (width, rows, inner),
    }


def product(report: Report, title: str, sizes: tuple[int, int, int], peak: float | None) -> None:
    m, k, n = sizes
    a = torch.randn(m, k, device=report.device, dtype=torch.bfloat16)
    b = torch.randn(n, k, device=report.device, dtype=torch.bfloat16)
    speed = 2 * m * k * n / fastest(lambda: a @ b.T, report) / 1e9
    title = f"{title}: {m} x {k} x {n}"
    if peak is None:
        report.figure(title, speed, "TFLOP/s")
    else:
        report.at_least(title, speed, PRODUCT_SHARE * peak / 1e12, "TFLOP/s")


def fastest(run, report: Report) -> float:
    """Median milliseconds with cold caches."""
    return interleaved({"it": run}, report.device, budget=0.0 if report.rehearsal else 0.3)["it"].p50
