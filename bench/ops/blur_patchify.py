"""Pictures of 1024 x 1024 to the 256 patches that BAGEL's understanding encoder reads."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ops.case import Case, Gate, Inputs
from reca_fast.kernels import blur_patchify
from reca_fast.kernels.blur_patchify.kernels import launch_blur_patchify
from reca_fast.kernels.common.image_plan import Preparation

PATCH = 14


def make_inputs(
    shape: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    side = shape["side"]
    # Dark, so that torch's fp32 weights and Pillow's integer ones hardly ever round a pixel to different grey levels.
    pixels = torch.randint(0, 16, (side, side, 3), generator=generator, device=device, dtype=torch.int32)
    return {"images": [pixels.to(torch.uint8)], "size": (shape["out"], shape["out"]), "dtype": dtype}


def ours(inputs: Inputs) -> list[Tensor]:
    return [blur_patchify(**inputs, patch_size=PATCH, mean=0.5, std=0.5)]


def eager(inputs: Inputs) -> list[Tensor]:
    """The authors' steps on tensors: fp32 picture, antialiased resize to whole grey levels, scale, normalise, patchify.

    They resize with Pillow on the CPU; torch's filter, an axis at a time, is the same but for ties in rounding.
    """
    h, w = inputs["size"]
    tokens = []
    for image in inputs["images"]:
        planes = image.permute(2, 0, 1).float()[None]
        for size in ((image.shape[0], w), (h, w)):
            planes = F.interpolate(planes, size=size, mode="bicubic", antialias=True).round().clamp(0, 255)
        planes = planes[0] / 255
        planes = (planes - 0.5) / 0.5
        cut = planes.reshape(3, h // PATCH, PATCH, w // PATCH, PATCH)
        tokens.append(torch.einsum("chpwq->hwpqc", cut).reshape(-1, PATCH**2 * 3))
    return [torch.cat(tokens).to(inputs["dtype"])]


def sizes(shape: Mapping[str, int]) -> dict[str, int]:
    return {"pixels": shape["side"] ** 2, "patches": (shape["out"] // PATCH) ** 2, "patch_size": PATCH}


def compile_all() -> None:
    image = torch.zeros(64, 1024, 3, dtype=torch.uint8)
    for dtype in (torch.bfloat16, torch.float32):
        launch_blur_patchify([image], Preparation([14, 224], PATCH, 0.0, [0.5] * 3, [0.5] * 3), dtype)


CASE = Case(
    name="blur_patchify",
    about="uint8 picture to normalised patches: antialiased bicubic resize as in Pillow, optional blur",
    shapes={"real": {"side": 1024, "out": 224}, "small": {"side": 256, "out": 56}},
    inputs=make_inputs,
    ours=ours,
    eager=eager,
    sizes=sizes,
    compile=compile_all,
    gates={
        # Colours are bytes, three of them a pixel: a wider load would need shuffles. Weights come 32 bits at a time.
        "blur_patchify_forward": Gate(max_registers=128, min_occupancy=0.25, load_bits=32)
    },
    max_launches=1,
    max_ratio=6.0,  # of what is asked of the caches; from memory, each byte once: 1.15 (tests/kernels)
    goal="1 launch that reads uint8: at most 1.15 times the minimum",
)
