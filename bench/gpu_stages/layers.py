"""Layers of BAGEL's real width on the recipe's pack of eight 1024 x 1024 pictures: how long, how well, how much memory.

Two and four layers with and without recomputation, then as many as fit, all 28 on a card with 141 GB. What two more
layers cost tells what 28 would.
"""

import time
from collections.abc import Callable
from statistics import median

import torch

from bench.timing import interleaved
from reca_fast.hardware import peak_flops
from reca_fast.models.parts.channels_last import to_channels_last
from reca_fast.models.parts.kl_vae import KLVAE, encode_pictures
from reca_fast.models.parts.kl_vae_config import KLVAEConfig

from .bagel import LAYERS, predicted_memory, training
from .report import Report

PICTURES, STEPS = 8, 3
PREDICTION = 0.05
"""Measured peak memory may differ from the predicted one by this share of it."""
RESERVE = 3 * 2**30
"""Bytes of a card left alone: the context, the libraries' workspaces, what lies between allocations."""


def hand_in(report: Report) -> None:
    pictures = 1 if report.rehearsal else PICTURES
    took: dict[tuple[int, bool], float] = {}
    for layers, recompute, compiled in ((2, False, False), (2, True, False), (4, False, False), (4, True, False)):
        report.attempt(title(layers, recompute, compiled), measure, report, layers, pictures, recompute, compiled, took)
    for recompute in (False, True):
        if {(2, recompute), (4, recompute)} <= took.keys():
            whole = took[2, recompute] + (took[4, recompute] - took[2, recompute]) / 2 * (LAYERS - 2)
            report.figure(f"{title(LAYERS, recompute, False)}: step, extrapolated", whole, "ms")
    report.attempt("VAE", encode, report, pictures)
    report.attempt("as many layers as fit", as_many_as_fit, report, pictures, took, needs=15.0)
    report.attempt(title(2, True, True), measure, report, 2, pictures, True, True, took, needs=40.0)


def encode(report: Report, pictures: int) -> None:
    """The VAE's half of a step: the targets' latents, under the trainer's autocast."""
    config = KLVAEConfig(ch=32) if report.rehearsal else KLVAEConfig()
    side = 64 if report.rehearsal else 1024
    with torch.device(report.device):
        vae = KLVAE(config, with_decoder=False).requires_grad_(False).eval()
        targets = [torch.zeros(side, side, 3, dtype=torch.uint8) for _ in range(pictures)]
        cells = side // vae.downsample
        noise = [torch.randn(vae.config.z_channels, cells, cells) for _ in range(pictures)]
    if not report.rehearsal:
        to_channels_last(vae)

    def run_once() -> None:
        with torch.autocast(report.device.type, torch.bfloat16, cache_enabled=False):
            encode_pictures(vae, targets, noise)

    times = interleaved({"VAE": run_once}, report.device, budget=0, least=1 if report.rehearsal else 3)["VAE"]
    report.figure(f"VAE, {pictures} pictures of {side} x {side}: encode", times.p50, "ms")
    if times.peak_bytes is not None:
        report.figure(f"VAE, {pictures} pictures of {side} x {side}: peak memory", times.peak_bytes / 1e9, "GB")


def title(layers: int, recompute: bool, compiled: bool) -> str:
    return f"{layers} layers{', recomputed' * recompute}{', compiled' * compiled}"


def as_many_as_fit(report: Report, pictures: int, took: dict) -> None:
    """With recomputation. Where the prediction was too low, two layers fewer, twice."""
    if report.rehearsal:
        layers = 5
    else:
        room = torch.cuda.mem_get_info()[0] - RESERVE
        needs = {n: predicted_memory(n, pictures, recompute=True).peak(True) for n in (4, LAYERS)}
        per_layer = (needs[LAYERS] - needs[4]) / (LAYERS - 4)
        layers = min(LAYERS, int(4 + (room - needs[4]) / per_layer))
    report.figure("layers that fit, predicted", layers, f"of {LAYERS}")
    for fewer in (0, 2, 4):
        name = title(layers - fewer, True, False)
        if report.attempt(name, measure, report, layers - fewer, pictures, True, False, took):
            return


def measure(
    report: Report, layers: int, pictures: int, recompute: bool, compiled: bool, took: dict[tuple[int, bool], float]
) -> None:
    name = title(layers, recompute, compiled)
    predicted = predicted_memory(layers, pictures, recompute=recompute, tiny=report.rehearsal).peak(recompute)
    with training(layers, pictures, report.device, recompute=recompute, compile_layers=compiled) as work:
        run_phases(work.phases, report.device)  # warm-up: compiles
        if not report.rehearsal:
            torch.cuda.reset_peak_memory_stats()
        rounds = [run_phases(work.phases, report.device) for _ in range(STEPS)]
        loss = work.loss.item() if work.loss is not None else float("nan")
        flops, tokens = work.flops, work.batch.num_tokens
    milliseconds = {phase: median(times[phase] for times in rounds) for phase in rounds[0]}
    step = sum(milliseconds.values())
    if not compiled:
        took[layers, recompute] = step
    report.figure(f"{name}: loss", loss, expected="a finite number")
    for phase, value in milliseconds.items():
        report.figure(f"{name}: {phase}", value, "ms")
    report.figure(f"{name}: step", step, "ms")
    report.figure(f"{name}: tokens", tokens / step * 1e3, "per s")
    report.figure(f"{name}: useful arithmetic", flops / step / 1e9, "TFLOP/s")
    if (peak := peak_flops(report.device)) is not None:
        report.figure(f"{name}: MFU", flops / step * 1e3 / peak, "of the data sheet's peak")
    if report.rehearsal:
        report.figure(f"{name}: peak memory", None, "GB", expected=round(predicted / 1e9, 6))
    else:
        used = torch.cuda.max_memory_allocated()
        fits = abs(used - predicted) <= PREDICTION * predicted
        report.figure(f"{name}: peak memory", used / 1e9, "GB", expected=round(predicted / 1e9, 2), ok=fits)
        report.figure(f"{name}: memory reserved", torch.cuda.max_memory_reserved() / 1e9, "GB")


def run_phases(phases: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """One step; milliseconds of each phase, on a GPU by events, so that the host may run ahead."""
    if device.type != "cuda":
        return {name: _on_cpu(phase) for name, phase in phases.items()}
    events = [torch.cuda.Event(enable_timing=True)]
    events[0].record()
    for phase in phases.values():
        phase()
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()
    torch.cuda.synchronize()
    return {name: a.elapsed_time(b) for name, a, b in zip(phases, events, events[1:], strict=False)}


def _on_cpu(phase: Callable[[], object]) -> float:
    start = time.perf_counter()
    phase()
    return (time.perf_counter() - start) * 1e3
