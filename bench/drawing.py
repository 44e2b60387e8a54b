"""How much faster pictures are drawn together (`sampling.together`) than one by one, by the tiny models.

    python -m bench.drawing           prints a table and writes bench/results/drawing.json

Every model draws pictures of 64 x 64 from captions, guided as its authors do it; a VLM with an auxiliary decoder draws
what it sees again. Times are CPU time of one thread; the ways take turns, and the best turn of each counts.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench.environment import environment
from reca_fast.config import ModelConfig, SamplingConfig
from reca_fast.memory import fill_model
from reca_fast.models import Model, open_model
from reca_fast.models.tiny import TINY
from reca_fast.sample import Sample, Text

RESULTS = Path(__file__).parent / "results" / "drawing.json"
SIDE = 64
"""Of the pictures, in pixels."""
SEEN = 112
"""Of what a VLM sees again."""


def opened(name: str) -> Model:
    """A tiny model with weights that draw: fresh heads of zeros get small random numbers."""
    all_trained = name in ("tiny-showo", "tiny-showo-vq", "tiny-harmon", "tiny-auxiliary")
    model = open_model(ModelConfig(name=name, precision="fp32", freeze_und=not all_trained))
    fill_model(model, torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    for parameter in model.module.parameters():
        if parameter.requires_grad and not parameter.any():
            parameter.data.normal_(std=0.02, generator=draw)
    return model


def asked(model: Model, count: int) -> list[Sample]:
    """What so many pictures are drawn from."""
    if model.drawn_side:
        texts = [model.tokenize(f"a red cup left of {number} blue ones") for number in range(count)]
        return [Sample("", (), None, None, Text(tuple(text))) for text in texts]
    return [Sample("", (), torch.randint(256, (SEEN, SEEN, 3), dtype=torch.uint8), None, None) for _ in range(count)]


def seconds(model: Model, samples: Sequence[Sample], sampling: SamplingConfig) -> tuple[float, list[Tensor]]:
    """CPU seconds of drawing, and the pictures."""
    before = time.process_time()
    drawn = model.sample(samples, [(SIDE, SIDE)] * len(samples), sampling, range(len(samples)))
    return time.process_time() - before, drawn


def measured(name: str, pictures: int, ways: Sequence[int], rounds: int) -> dict[str, dict[str, float]]:
    """For each number of pictures at once: seconds for one, how many times as fast as one by one, and the largest
    difference of a pixel from what is drawn one by one.
    """
    model = opened(name)
    samples, times, drawn = asked(model, pictures), dict.fromkeys(ways, float("inf")), {}
    seconds(model, samples[:1], SamplingConfig())  # warms up
    for _ in range(rounds):
        for together in ways:
            took, drawn[together] = seconds(model, samples, SamplingConfig(together=together))
            times[together] = min(times[together], took)
    alone = torch.stack(drawn[1]).int()
    return {
        str(together): {
            "seconds": times[together] / pictures,
            "faster": times[1] / times[together],
            "difference": (torch.stack(drawn[together]).int() - alone).abs().max().item(),
        }
        for together in ways
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.drawing", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=[*TINY], help=f"some of {', '.join(TINY)} (default: all)")
    parser.add_argument("--pictures", type=int, default=16, help="that are drawn (default: %(default)s)")
    parser.add_argument("--together", type=int, nargs="+", default=[4, 16], help="at once (default: 4 and 16)")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each way (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    for name in options.models:
        figures[name] = measured(name, options.pictures, [1, *options.together], options.rounds)
        for together, row in figures[name].items():
            print(
                f"{name}, {together} at once: {1e3 * row['seconds']:.0f} ms a picture, {row['faster']:.1f} times as "
                f"fast, pixels differ by {row['difference']:.0f} at most",
                flush=True,
            )
    RESULTS.write_text(json.dumps({"models": figures, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
