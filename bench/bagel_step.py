"""Time and memory of one RECA training step (forward + backward, no optimizer) at a small BAGEL configuration.

    python bench/bagel_step.py                      # every variant, about seven minutes on a quiet core
    python bench/bagel_step.py --variants fused ours --rounds 3

Each measurement runs in a fresh process, so that one variant's memory never serves another; rounds interleave the
variants (A B A B), so that a change in the machine's load meets all of them. A process takes one warm-up step and then
the timed ones. All variants get the same weights and the same packed inputs. CPU seconds are the figure to compare on
a shared machine; ratios are formed inside each round, then their median is taken.
"""

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.random_pack import Sample, build_config, pack_inputs, random_weights
from bench.scatter_reference import AttentionKernel, ScatterBagel

RESULT = Path(__file__).resolve().parent / "results" / "bagel_step.json"
SEED = 7
SIZES: dict[str, dict[str, Any]] = {
    # Two samples of 256 ViT + 40 text + 1024 latent tokens and image markers: 2648 packed tokens, 58 M parameters.
    "recorded": {
        "llm": {
            "hidden_size": 512,
            "intermediate_size": 1408,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "vocab_size": 8192,
        },
        "vit": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 7, "num_attention_heads": 6},
        "bagel": {"max_latent_size": 64, "vit_max_num_patch_per_side": 70},
        "vae": {"z_channels": 16},
        "samples": [Sample(38, (224, 224), (512, 512))] * 2,
    },
    # For trying the harness itself.
    "tiny": {"samples": [Sample(6, (28, 42), (64, 96))] * 2},
}


@dataclass
class StepConfig:
    """Everything a variant needs: the dicts of config.json, weights under checkpoint names, packed inputs."""

    model: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]


Step = Callable[[], float]
"""One forward and backward from cleared gradients; leaves the gradients in place and returns the loss."""


def step_config(size: str) -> StepConfig:
    """The seeded model and pack of a named size."""
    setting = dict(SIZES[size])
    samples = setting.pop("samples")
    model = build_config(**setting)
    inputs = pack_inputs(model, samples, SEED)
    return StepConfig(model, random_weights(ScatterBagel(model), SEED), inputs)


def reference_step(config: StepConfig, kernel: AttentionKernel, checkpointing: bool) -> Step:
    """The scatter-style baseline."""
    with torch.device("meta"):  # takes over the given weights instead of copying them
        model = ScatterBagel(config.model, kernel=kernel, checkpointing=checkpointing)
    model.load_state_dict(config.weights, assign=True)
    inputs = config.inputs

    def step() -> float:
        model.zero_grad(set_to_none=True)
        loss = model(inputs)
        loss.backward()
        return loss.item()

    return step


def ours_step(config: StepConfig, recompute: Any) -> Step:
    """The same step by reca_fast under `memory.recompute`. Imported in here, so that the baselines are measured without
    it.
    """
    from reca_fast.config import LossWeights, MemoryConfig, ModelConfig
    from reca_fast.memory import apply_levers
    from reca_fast.models.bagel.cases import RecordedCase
    from reca_fast.models.bagel.config import BagelConfig
    from reca_fast.models.bagel.model import BagelModel
    from reca_fast.models.bagel.names import NETWORK_NAMES, VIT_NAMES
    from reca_fast.objectives import weighted_loss

    case = RecordedCase(Path(), BagelConfig.from_dict(config.model, "the benchmark"), config.model, config.inputs)
    model = BagelModel(case.config, ModelConfig(precision="fp32"))
    apply_levers(model.module, model.blocks(), MemoryConfig(recompute=recompute))
    for module, names in ((model.module, NETWORK_NAMES), (model.encoders.vit, VIT_NAMES)):
        keys = names.keys(dict(module.named_parameters()))
        module.load_state_dict({name: config.weights[key] for key, name in keys.items()}, assign=True)
    model.module.fill_tables("cpu")
    batch = case.batch()

    def step() -> float:
        model.module.zero_grad(set_to_none=True)
        loss = weighted_loss(model.loss_sums(model.encode(batch)), batch.counts, LossWeights())
        loss.backward()
        return loss.item()

    return step


VARIANTS: dict[str, Callable[[StepConfig], Step]] = {
    "generic": partial(reference_step, kernel="generic", checkpointing=False),
    "generic+checkpoint": partial(reference_step, kernel="generic", checkpointing=True),
    "fused": partial(reference_step, kernel="fused", checkpointing=False),
    "fused+checkpoint": partial(reference_step, kernel="fused", checkpointing=True),
    "ours": partial(ours_step, recompute="none"),
    "ours+checkpoint": partial(ours_step, recompute="blocks"),
    "ours+selective": partial(ours_step, recompute="selective"),
}
DEFAULT_VARIANTS = [*VARIANTS]


def memory_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (peak since the last reset) of this process; without /proc, the peak since its start."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def give_back_free_memory() -> None:
    """Return freed heap to the system: what is left of building the weights must not hide a step's own needs."""
    import ctypes

    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def measure(variant: str, size: str, steps: int, threads: int) -> dict[str, Any]:
    """Run one variant in this process."""
    torch.set_num_threads(threads)
    config = step_config(size)
    step = VARIANTS[variant](config)
    del config
    give_back_free_memory()
    built = memory_mib("VmRSS")
    step()
    peak_is_reset = False
    with suppress(OSError):  # not every container allows it; then the peak includes building and warm-up
        Path("/proc/self/clear_refs").write_text("5")
        peak_is_reset = True
    cpu, wall, loss = [], [], 0.0
    for _ in range(steps):
        start_cpu, start_wall = time.process_time(), time.perf_counter()
        loss = step()
        cpu.append(time.process_time() - start_cpu)
        wall.append(time.perf_counter() - start_wall)
    peak = memory_mib("VmHWM")
    return {
        "variant": variant,
        "cpu_s": cpu,
        "wall_s": wall,
        "loss": loss,
        "built_mib": built,
        "peak_mib": peak,
        "peak_above_weights_mib": peak - built,
        "peak_is_reset": peak_is_reset,
    }


def measure_in_subprocess(variant: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one variant in a fresh process and read its answer (the last line that it prints)."""
    command = [sys.executable, __file__, "--worker", variant, "--size", args.size]
    command += ["--steps", str(args.steps), "--threads", str(args.threads)]
    heap = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)} if args.keep_heap else {}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | heap)
    if done.returncode:
        raise SystemExit(f"variant {variant} failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def summarise(rounds: list[dict[str, dict[str, Any]]], baseline: str) -> dict[str, dict[str, float]]:
    """Medians over rounds of each round's medians; ratios are taken inside a round before their median."""
    figures = []
    for results in rounds:
        figures.append({name: {key: median(r[key]) for key in ("cpu_s", "wall_s")} for name, r in results.items()})
        for name, result in results.items():
            figures[-1][name] |= {key: result[key] for key in ("peak_above_weights_mib", "peak_mib", "loss")}
    summary = {}
    for name in rounds[0]:
        summary[name] = {key: median(f[name][key] for f in figures) for key in figures[0][name]}
        for key in ("cpu_s", "peak_above_weights_mib"):
            summary[name][f"{key}_ratio"] = median(f[name][key] / f[baseline][key] for f in figures)
    return summary


def like_with_like(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """How many times faster than each baseline ours is, checkpointing against checkpointing and none against none."""
    ratios: dict[str, dict[str, float]] = {}
    for suffix, theirs in (("", ""), ("+checkpoint", "+checkpoint"), ("+selective", "+checkpoint")):
        for kernel in ("generic", "fused"):
            names = (f"{kernel}{theirs}", f"ours{suffix}")
            if all(name in rounds[0] for name in names):
                each = [median(r[names[0]]["cpu_s"]) / median(r[names[1]]["cpu_s"]) for r in rounds]
                ratios[f"{names[0]} / {names[1]}"] = {"median": median(each), "least": min(each), "most": max(each)}
    return ratios


def print_table(summary: dict[str, dict[str, float]], baseline: str) -> None:
    table = Table(title="One RECA step, forward + backward: medians; peak memory over that of the weights")
    table.add_column("variant", no_wrap=True, min_width=max(map(len, summary)))
    columns = ("CPU s", f"CPU / {baseline}", "wall s", "peak MiB", f"peak / {baseline}", "loss")
    for column in columns:
        table.add_column(column, justify="right")
    for name, s in summary.items():
        table.add_row(
            name,
            f"{s['cpu_s']:.2f}",
            f"{s['cpu_s_ratio']:.3f}",
            f"{s['wall_s']:.2f}",
            f"{s['peak_above_weights_mib']:.0f}",
            f"{s['peak_above_weights_mib_ratio']:.3f}",
            f"{s['loss']:.5f}",
        )
    Console().print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=DEFAULT_VARIANTS)
    parser.add_argument("--baseline", choices=list(VARIANTS), help="of the ratios (default: fused, else the first)")
    parser.add_argument("--rounds", type=int, default=2, help="interleaved rounds, one process per variant in each")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a process, after one warm-up")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--size", choices=list(SIZES), default="recorded")
    parser.add_argument(
        "--keep-heap",
        action="store_true",
        help="let glibc keep freed memory: leaves out the page faults of large buffers, which are dear in some "
        "virtual machines and hit the generic kernel most (for times only, memory figures get coarser)",
    )
    parser.add_argument("--out", type=Path, default=RESULT, help="result file (JSON)")
    parser.add_argument("--worker", choices=list(VARIANTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.rounds, args.steps, args.threads) < 1:
        parser.error("rounds, steps and threads must be at least 1")
    args.baseline = args.baseline or ("fused" if "fused" in args.variants else args.variants[0])
    if args.baseline not in args.variants:
        parser.error(f"the baseline {args.baseline} is not among the variants")
    return args


def main() -> None:
    args = parse_arguments()
    if args.worker:
        print(json.dumps(measure(args.worker, args.size, args.steps, args.threads)))
        return

    from bench.environment import environment

    console = Console(stderr=True)
    rounds: list[dict[str, Any]] = []
    for number in range(args.rounds):
        rounds.append({})
        for name in args.variants:
            result = rounds[-1][name] = measure_in_subprocess(name, args)
            console.print(f"round {number + 1}/{args.rounds} {name}: {median(result['cpu_s']):.2f} CPU s per step")
    summary = summarise(rounds, args.baseline)
    print_table(summary, args.baseline)
    ratios = like_with_like(rounds)
    for pair, ratio in ratios.items():
        console.print(f"{pair}: {ratio['median']:.2f}x in CPU time ({ratio['least']:.2f} to {ratio['most']:.2f})")
    setting = {key: getattr(args, key) for key in ("size", "rounds", "steps", "threads", "baseline", "keep_heap")}
    report = {
        "environment": environment(),
        "setting": setting,
        "summary": summary,
        "like_with_like": ratios,
        "rounds": rounds,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"written: {args.out}")


if __name__ == "__main__":
    main()
