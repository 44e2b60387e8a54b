"""How BAGEL's training scales to 1024 H100, simulated: docs/scaling.md shows the result.

    python bench/scaling.py --json bench/results/scaling.json --png bench/results/scaling.png

One step of one process is run on fake tensors; what several processes share and send follows from it by arithmetic.
"""

import argparse
import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from reca_fast.config import DataConfig, MemoryConfig, ParallelConfig, ResizeConfig, RunConfig
from reca_fast.hardware import find_gpu
from reca_fast.models import published_model
from reca_fast.plan import estimate
from reca_fast.plan.simulate import shared_out, step_on_fakes

GIB = 2**30
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
SHARDS = 64
"""Beyond so many GPUs the model is replicated, and shared inside each group (HSDP)."""


def curve(gpu_name: str) -> dict:
    """A row for each number of GPUs, and the sentences that the rows rest on."""
    data = DataConfig(target_resize=ResizeConfig(1024, 512, 16), tokens_per_pack=35328)
    config = RunConfig(data=data, memory=MemoryConfig(recompute="blocks"))
    model, gpu = published_model("BAGEL-7B-MoT", config.model), find_gpu(gpu_name)
    spare = deepcopy(model)
    step = step_on_fakes(replace(config, memory=replace(config.memory, trained="bf16")), model, 1)
    rows = []
    for gpus in GPUS:
        shared = replace(config, parallel=ParallelConfig(replicate=max(1, gpus // SHARDS)))
        mine = shared_out(step, spare, shared, gpus, 1)
        time = estimate(mine, shared, gpu, gpus)
        rows.append(
            {
                "gpus": gpus,
                "replicas": shared.parallel.replicate,
                "gib": round(mine.device.total / GIB, 1),
                "step_seconds": round(time.step_seconds, 2),
                "computation": round(sum(time.parts[k] for k in ("products", "memory traffic", "launches")), 2),
                "between_gpus": round(time.parts["between GPUs"], 2),
                "images_per_second": round(mine.images * gpus / time.step_seconds, 1),
                "tflops_per_gpu": round(mine.useful_flops / time.step_seconds / 1e12, 1),
            }
        )
    return {"gpu": gpu.name, "rows": rows, "assumptions": time.assumptions}


def draw(result: dict, path: Path) -> None:
    """Pictures per second over GPUs, beside a straight line."""
    axes = (figure := Figure(figsize=(6, 4), layout="constrained")).subplots()
    gpus = [row["gpus"] for row in result["rows"]]
    rates = [row["images_per_second"] for row in result["rows"]]
    axes.loglog(gpus, rates, marker="o", label="simulated")
    axes.loglog(gpus, [rates[0] / gpus[0] * n for n in gpus], linestyle="--", label=f"straight from {gpus[0]}")
    axes.set_xlabel(f"{result['gpu']} GPUs")
    axes.set_ylabel("pictures of 1024 x 1024 a second")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="H100")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    args = parser.parse_args()
    found = curve(args.gpu)
    if args.json:
        args.json.write_text(json.dumps({"command": "python bench/scaling.py"} | found, indent=1) + "\n")
    if args.png:
        draw(found, args.png)
    for row in found["rows"]:
        print(row)
