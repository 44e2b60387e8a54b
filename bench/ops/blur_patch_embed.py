"""A picture of 1024 x 1024 to the 256 embeddings with which BAGEL's understanding encoder starts."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ops import blur_patchify as patches_only
from bench.ops.case import Case, Gate, Inputs, gradients
from reca_fast.kernels import blur_patch_embed
from reca_fast.kernels.blur_patch_embed.kernels import Embedding, launch_blur_patch_embed
from reca_fast.kernels.common.image_plan import Preparation

PATCH, GRID = 14, 70  # positions per side that the encoder knows
PARAMETERS = ("weight", "bias", "position_embedding")


def make_inputs(
    shape: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    side, width = shape["out"] // PATCH, shape["width"]

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).mul(0.05).to(dtype).requires_grad_()

    rows = torch.arange(side, device=device)
    return patches_only.make_inputs(shape, dtype, device, generator) | {
        "weight": normal(width, PATCH**2 * 3),
        "bias": normal(width),
        "position_embedding": normal(GRID**2, width),
        "position_ids": (rows[:, None] * GRID + rows).flatten(),
    }


def ours(inputs: Inputs) -> list[Tensor]:
    given = {name: value for name, value in inputs.items() if name != "dtype"}
    return gradients(blur_patch_embed(**given, patch_size=PATCH, mean=0.5, std=0.5), inputs)


def eager(inputs: Inputs) -> list[Tensor]:
    """The authors' steps: patches as in `blur_patchify`, a linear layer, rows of the position table, their sum."""
    patches = patches_only.eager({name: inputs[name] for name in ("images", "size", "dtype")})[0]
    out = F.linear(patches, inputs["weight"], inputs["bias"])
    return gradients(out + F.embedding(inputs["position_ids"], inputs["position_embedding"]), inputs)


def sizes(shape: Mapping[str, int]) -> dict[str, int]:
    patches = (shape["out"] // PATCH) ** 2
    pictures = {"pixels": shape["side"] ** 2, "patches": patches, "patch_size": PATCH}
    return {**pictures, "width": shape["width"], "positions": GRID**2}


def compile_all() -> None:
    image, width = torch.zeros(64, 1024, 3, dtype=torch.uint8), 1152
    weight, table = (torch.zeros(rows, columns, dtype=torch.bfloat16) for rows, columns in ((width, 588), (64, width)))
    ids, half = torch.zeros(16, dtype=torch.int64), [0.5] * 3
    launch_blur_patch_embed(
        [image], Embedding(weight, table[0], table, ids), Preparation([14, 224], PATCH, 0.0, half, half)
    )


CASE = Case(
    name="blur_patch_embed",
    about="uint8 picture to the first embeddings of the understanding encoder; the patches are never written forward",
    shapes={"real": {"side": 1024, "out": 224, "width": 1152}, "small": {"side": 128, "out": 28, "width": 1152}},
    inputs=make_inputs,
    ours=ours,
    eager=eager,
    sizes=sizes,
    count_flops=False,  # a program multiplies few patches, and the kernel's products have 16 rows at least
    compile=compile_all,
    gates={
        # 16 rows of patches a product: HMMA on every target. A row of the weight is 8 bytes off a multiple of 16.
        "blur_patch_embed_forward": Gate(max_registers=128, min_occupancy=0.25, load_bits=64)
    },
    max_launches=6,
    max_ratio=1.15,
    goal="1 launch forward that writes no patches",
)
