"""What a cache of encoded pictures saves and takes: arithmetic at BAGEL's size, bytes, and time of a tiny BAGEL's step.

    python -m bench.cache             prints a table and writes bench/results/cache.json

FLOPs are counted on the meta device, at the sizes of the recipe `bagel`. A tiny step is measured on one
thread, in CPU time of the whole process, so decoding in the loader's threads counts too.
Rounds with the pictures and from the cache take turns. Needs scikit-image for its photographs.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.environment import environment
from reca_fast.cli.options import parse
from reca_fast.config import RunConfig
from reca_fast.data.loader import PackLoader
from reca_fast.data.samples import SampleBuilder
from reca_fast.data.sources import open_source
from reca_fast.models import open_model
from reca_fast.models.bagel.config import BAGEL_7B_MOT
from reca_fast.models.bagel.encoders import BagelEncoders
from reca_fast.models.bagel.tiny import VAE_FILE, write_tiny_checkpoint
from reca_fast.models.bagel.tiny.photos import write_crops
from reca_fast.models.parts.kl_vae import KLVAE
from reca_fast.precompute import make_cache
from reca_fast.train.assemble import assemble
from reca_fast.train.distributed import Processes
from reca_fast.train.step import train_step

RESULTS = Path(__file__).parent / "results" / "cache.json"
CONDITION = 224
TARGETS = (1024, 512)


def counted() -> dict[str, dict[str, float]]:
    """Of a condition and of targets: TFLOP that the encoders take for one picture, and MB that the result takes."""
    encoders, out = BagelEncoders(BAGEL_7B_MOT), {}
    with torch.device("meta"):
        encoders.vae = KLVAE(BAGEL_7B_MOT.vae)
        for kind, side in (("condition", CONDITION), *(("target", side) for side in TARGETS)):
            picture = torch.empty(side, side, 3, dtype=torch.uint8)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                result = encoders.features(picture, "eager") if kind == "condition" else encoders.moments(picture)
            # In a bf16 run all of them were computed in bf16, and are stored so.
            out[f"{kind} {side} x {side}"] = {"tflop": counter.get_total_flops() / 1e12, "mb": 2 * result.numel() / 1e6}
    return out


def stepper(config: RunConfig, closing: ExitStack) -> Callable[[int], float]:
    """A run that was begun: gives the CPU milliseconds of each of so many further steps."""
    processes = Processes()
    processes.join("cpu")
    model, source = open_model(config.model), open_source(config.data)
    inputs = model.inputs(config.data)
    builder = SampleBuilder(config.data, inputs)
    loader: Any = closing.enter_context(PackLoader(source, builder, config.data, inputs.collate, range(1)))
    run = assemble(config, processes, model)

    def go(steps: int) -> float:
        before = time.process_time()
        for _ in range(steps):
            train_step(run, next(loader))
        return 1e3 * (time.process_time() - before) / steps

    return go


def tiny_step(rounds: int, steps: int) -> dict[str, float]:
    """Median CPU milliseconds of a step with the pictures and from a cache of them, and the share saved."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, ExitStack() as closing:
        folder = Path(name)
        write_tiny_checkpoint(folder / "base", vae_file=VAE_FILE)
        write_crops(folder / "pictures", "train", 120)
        options = ["--config", "tiny-bagel", "--model.path", str(folder / "base"), "--data.tokens_per_pack", "2560"]
        options += ["--data.source", str(folder / "pictures")]
        config = parse(RunConfig, "train", options)
        make_cache(folder / "cache", config.model, config.data, device=torch.device("cpu"))
        cached = replace(config, data=replace(config.data, cache=str(folder / "cache")))
        runs = {"pictures": stepper(config, closing), "cache": stepper(cached, closing)}
        times: dict[str, list[float]] = {kind: [] for kind in runs}
        for turn in range(rounds + 1):
            for kind, go in runs.items():
                took = go(steps)
                if turn:  # the first round warms up
                    times[kind].append(took)
    pictures, cache = (statistics.median(times[kind]) for kind in runs)
    return {"pictures_ms": pictures, "cache_ms": cache, "saved": 1 - cache / pictures}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cache", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds that are measured (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="steps of a round (default: %(default)s)")
    options = parser.parse_args()
    sizes, step = counted(), tiny_step(options.rounds, options.steps)
    for name, figures in sizes.items():
        print(f"{name}: {figures['tflop']:.2f} TFLOP, {figures['mb']:.2f} MB in bf16")
    print(
        f"a tiny BAGEL's step: {step['pictures_ms']:.0f} ms with the pictures, {step['cache_ms']:.0f} ms from the "
        f"cache ({step['saved']:.0%} saved)"
    )
    RESULTS.write_text(json.dumps({"encoders": sizes, "tiny": step, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
