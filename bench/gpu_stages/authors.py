"""Two layers of BAGEL's real width laid out as the authors have them (bench/scatter_reference.py), against ours.

Both run forward and backward on the same pack of four pictures, without the VAE and the optimizer. The authors' layout
has bf16 weights, as their sharding gives it, ours casts its fp32 weights on the way: if anything, that favours theirs.
Its attention takes dense masks per sample; what a compiled mask costs is in `attention, flex_attention`.
"""

from statistics import median

import torch

from bench.random_pack import Sample, build_config, pack_inputs
from bench.scatter_reference import ScatterBagel

from .bagel import real_config, training
from .layers import run_phases
from .report import Report

LAYERS, PICTURES, STEPS = 2, 4, 3


def hand_in(report: Report) -> None:
    pictures = 1 if report.rehearsal else PICTURES
    for recompute in (False, True):
        times: dict[str, float] = {}
        title = f"{LAYERS} layers{', recomputed' * recompute}"
        report.attempt(f"{title}, ours", ours, report, title, pictures, recompute, times)
        report.attempt(f"{title}, authors' layout", authors, report, title, pictures, recompute, times)
        if len(times) == 2:
            report.at_least(
                f"{title}: authors' layout / ours", times["theirs"] / times["ours"], 0.0 if report.rehearsal else 1.0
            )


def ours(report: Report, title: str, pictures: int, recompute: bool, times: dict[str, float]) -> None:
    with training(LAYERS, pictures, report.device, recompute=recompute) as work:
        phases = {"forward": work.forward, "backward": work.backward}
        times["ours"] = timed(report, f"{title}, ours", phases, work.model.module)


def authors(report: Report, title: str, pictures: int, recompute: bool, times: dict[str, float]) -> None:
    sizes = real_config(LAYERS, tiny=report.rehearsal)
    config = build_config(
        llm={
            "hidden_size": sizes.llm.hidden_size,
            "intermediate_size": sizes.llm.intermediate_size,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": sizes.llm.num_attention_heads,
            "num_key_value_heads": sizes.llm.num_key_value_heads,
            "vocab_size": sizes.llm.vocab_size,
        },
        vit={
            "hidden_size": sizes.vit.hidden_size,
            "intermediate_size": sizes.vit.intermediate_size,
            "num_hidden_layers": sizes.vit.num_hidden_layers,
            "num_attention_heads": sizes.vit.num_attention_heads,
        },
        bagel={"max_latent_size": 64, "vit_max_num_patch_per_side": 70},
        vae={"z_channels": 16},
    )
    view, target = ((56, 56), (64, 64)) if report.rehearsal else ((224, 224), (1024, 1024))
    packed = pack_inputs(config, [Sample(21, view, target)] * pictures, seed=0)
    inputs = {
        name: value.to(report.device, torch.bfloat16 if value.is_floating_point() else value.dtype)
        for name, value in packed.items()
    }
    with torch.device(report.device):  # where it makes tensors of its own
        model = ScatterBagel(config, checkpointing=recompute).to(torch.bfloat16)
        loss: list[torch.Tensor] = []
        phases = {"forward": lambda: loss.append(model(inputs)), "backward": lambda: loss.pop().backward()}
        times["theirs"] = timed(report, f"{title}, authors' layout", phases, model)


def timed(report: Report, name: str, phases: dict, model: torch.nn.Module) -> float:
    """Figures of forward and backward, and their sum in milliseconds."""
    rounds, weights = [], 0
    for _ in range(1 + STEPS):
        model.zero_grad(set_to_none=True)
        if not report.rehearsal:
            weights = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        rounds.append(run_phases(phases, report.device))
    milliseconds = {phase: median(times[phase] for times in rounds[1:]) for phase in phases}
    for phase, value in milliseconds.items():
        report.figure(f"{name}: {phase}", value, "ms")
    if not report.rehearsal:
        above = torch.cuda.max_memory_allocated() - weights
        report.figure(f"{name}: peak memory above the weights", above / 1e9, "GB")
    return sum(milliseconds.values())
