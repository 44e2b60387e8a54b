"""From JPEG bytes to model-ready tensors on one thread: the authors' Pillow pipeline against ours.

    python -m bench.images            prints a table and writes bench/results/images.json

Needs scikit-image for its photos, which are continued by mirroring to the wanted size (enlarging them would make JPEGs
that decode too easily) and encoded at quality 90.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, features
from skimage import data as photos
from torch import Tensor

from bench.environment import environment
from reca_fast.config import DataConfig
from reca_fast.data.images import decode, fitted_size, patchify, resize, to_model_range

NAMES = ("astronaut", "coffee", "rocket", "chelsea", "retina", "hubble_deep_field", "immunohistochemistry")
SIZES = ((1024, 1024), (1600, 1200))
RESULTS = Path(__file__).parent / "results" / "images.json"
CONFIG = DataConfig()
PATCH = 14


def jpegs(width: int, height: int) -> list[bytes]:
    """One JPEG of the given size for each photo."""
    encoded = []
    for name in NAMES:
        photo = getattr(photos, name)()[:height, :width, :3]
        missing = ((0, height - photo.shape[0]), (0, width - photo.shape[1]), (0, 0))
        out = io.BytesIO()
        Image.fromarray(np.pad(photo, missing, mode="symmetric")).save(out, "JPEG", quality=90)
        encoded.append(out.getvalue())
    return encoded


def authors(data: bytes) -> tuple[Tensor, Tensor]:
    """Pillow all the way, both pictures normalised in fp32 on the CPU, patches cut in fp32."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")

    def transformed(size: tuple[int, int]) -> Tensor:
        resized = picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)
        image = torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous().float().div(255)
        return image.sub_(0.5).div_(0.5)

    target = transformed(fitted_size(*picture.size, CONFIG.target_resize))
    small = transformed(fitted_size(*picture.size, CONFIG.condition_resize))
    _, h, w = small.shape
    grid = small.reshape(3, h // PATCH, PATCH, w // PATCH, PATCH)
    return target, torch.einsum("chpwq->hwpqc", grid).reshape(-1, PATCH * PATCH * 3)


def ours(
    method: Literal["fast", "exact"], patch_dtype: torch.dtype = torch.bfloat16
) -> Callable[[bytes], tuple[Tensor, Tensor]]:
    """The target stays uint8 (the device normalises it); patches are made from the resized uint8 picture."""

    def pipeline(data: bytes) -> tuple[Tensor, Tensor]:
        image = decode(data)
        size = (image.shape[1], image.shape[0])
        target = resize(image, fitted_size(*size, CONFIG.target_resize), method)
        small = resize(image, fitted_size(*size, CONFIG.condition_resize), method)
        return target, patchify(small, PATCH, patch_dtype)

    return pipeline


def fp32_target(data: bytes) -> tuple[Tensor, Tensor]:
    """Ours, with the target normalised on the CPU like the authors': what is gained without moving work to the GPU."""
    target, patches = ours("fast")(data)
    return to_model_range(target), patches


def parts(width: int, height: int) -> dict[str, Callable[[bytes], object]]:
    """Single steps of our pipeline, on one decoded photo."""
    image = decode(jpegs(width, height)[0])
    target, small = (fitted_size(width, height, rule) for rule in (CONFIG.target_resize, CONFIG.condition_resize))
    vit_picture = resize(image, small)
    return {
        "  decode": decode,
        f"  resize to {target[0]}x{target[1]}": lambda _: resize(image, target),
        f"  resize to {small[0]}x{small[1]}": lambda _: resize(image, small),
        "  patchify": lambda _: patchify(vit_picture, PATCH, torch.bfloat16),
    }


def measure(ways: dict[str, Callable[[bytes], object]], data: list[bytes], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds per picture (CPU, wall), and how many times faster than the first way each is.

    The ways take turns, so that a busy machine hits all alike; ratios are formed inside each round, then their median.
    """
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start_cpu, start_wall = time.process_time(), time.perf_counter()
            for picture in data:
                way(picture)
            cpu[name].append((time.process_time() - start_cpu) / len(data) * 1e3)
            wall[name].append((time.perf_counter() - start_wall) / len(data) * 1e3)
    base = next(iter(ways))

    def faster(times: dict[str, list[float]], name: str) -> float:
        return statistics.median(a / b for a, b in zip(times[base], times[name], strict=True))

    return {
        name: {
            "cpu_ms": statistics.median(cpu[name]),
            "wall_ms": statistics.median(wall[name]),
            "cpu_ratio": faster(cpu, name),
            "wall_ratio": faster(wall, name),
        }
        for name in ways
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict = {
        "environment": environment()
        | {"pillow": version("pillow"), "simplejpeg": version("simplejpeg"), "pillow_libjpeg": features.version("jpg")},
        "sizes": {},
    }
    for width, height in SIZES:
        data = jpegs(width, height)
        mean_kb = sum(map(len, data)) / len(data) / 1024
        pixels, reference = ours("exact", torch.float32)(data[0]), authors(data[0])
        assert torch.equal((pixels[0].permute(2, 0, 1).float() / 255 - 0.5) / 0.5, reference[0])
        assert torch.equal(pixels[1], reference[1])
        ways = {
            "authors": authors,
            "ours, fast": ours("fast"),
            "ours, fast, fp32 target": fp32_target,
            "ours, exact": ours("exact"),
            **parts(width, height),
        }
        rows = measure(ways, data, options.rounds)
        report["sizes"][f"{width}x{height}"] = {"mean_jpeg_kb": round(mean_kb), "rows": rows}
        print(f"\n{width}x{height}, {len(data)} photos, mean {mean_kb:.0f} KB, one thread")
        print(f"{'':24}{'CPU ms':>9}{'wall ms':>9}{'images/s':>10}{'ratio CPU':>11}{'ratio wall':>12}")
        for name, row in rows.items():
            print(
                f"{name:24}{row['cpu_ms']:9.2f}{row['wall_ms']:9.2f}{1e3 / row['cpu_ms']:10.0f}"
                + ("" if name.startswith(" ") else f"{row['cpu_ratio']:11.1f}{row['wall_ratio']:12.1f}")
            )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
