"""Text, picture and latent embeddings put together for BAGEL's decoder."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ops.case import Case, Gate, Inputs, gradients
from reca_fast.kernels import template_concat
from reca_fast.kernels.template_concat.kernels import launch_backward, launch_forward
from reca_fast.kernels.template_concat.sources import Places, Sources, Wanted


def make_inputs(
    shape: Mapping[str, int], dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Inputs:
    text, visual, pictures, area, dim = (shape[name] for name in ("text", "visual", "pictures", "area", "dim"))
    latents = pictures * area

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).to(dtype)

    # Each sample: its condition, its prompt, its target.
    per_sample = torch.cat(
        [torch.full((n // pictures,), kind, device=device) for kind, n in enumerate((visual, text, latents))]
    )
    kind = per_sample.repeat(pictures)
    return {
        "token_ids": torch.arange(text, device=device) % 64,
        "embedding": normal(64, dim),
        "token_rows": (kind == 1).nonzero().squeeze(1),
        "visual": normal(visual, dim).requires_grad_(),
        "visual_rows": (kind == 0).nonzero().squeeze(1),
        "visual_position_ids": torch.arange(visual // pictures, device=device).repeat(pictures),
        "visual_position_embedding": normal(visual // pictures, dim),
        "latents": normal(latents, dim).requires_grad_(),
        "latent_rows": (kind == 2).nonzero().squeeze(1),
        "latent_position_ids": torch.arange(area, device=device).repeat(pictures),
        "latent_position_embedding": normal(area, dim),
        "timestep_embedding": normal(pictures, dim).requires_grad_(),
        "latent_cu_seqlens": torch.arange(0, latents + 1, area, device=device),
    }


def ours(inputs: Inputs) -> list[Tensor]:
    return gradients(template_concat(**inputs), inputs)


def eager(inputs: Inputs) -> list[Tensor]:
    """The authors' order: a zeroed sequence, one indexed write per source, every term as a tensor of its own, one time
    embedding per latent token (their MLP also runs per token; that product is not counted here).
    """
    x = inputs
    tokens = len(x["latents"]) // len(x["timestep_embedding"])
    text = F.embedding(x["token_ids"], x["embedding"])
    packed = text.new_zeros(len(text) + len(x["visual"]) + len(x["latents"]), text.shape[1])
    packed[x["token_rows"]] = text
    visual = x["visual"] + x["visual_position_embedding"][x["visual_position_ids"]]
    packed[x["visual_rows"]] = visual.to(packed.dtype)
    times = x["timestep_embedding"].repeat_interleave(tokens, dim=0)
    latents = x["latents"] + times + x["latent_position_embedding"][x["latent_position_ids"]]
    packed[x["latent_rows"]] = latents.to(packed.dtype)
    return gradients(packed, inputs)


def sizes(shape: Mapping[str, int]) -> dict[str, int]:
    latents = shape["pictures"] * shape["area"]
    rows = {"text": shape["text"], "visual": shape["visual"], "latents": latents}
    return {**rows, "pictures": shape["pictures"], "hidden_size": shape["dim"]}


def compile_all() -> None:
    """All at once, with tables of the model's dtype and of fp32; then BAGEL's two calls, one of them with int32."""
    dim, narrow = 3584, torch.bfloat16

    def ids(count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int64)

    def rows(count: int, dtype: torch.dtype = narrow) -> Tensor:
        return torch.zeros(count, dim, dtype=dtype)

    for dtype in (narrow, torch.float32):  # the model holds its position tables in fp32
        everything = Sources(
            *(ids(16), rows(16), ids(16)),
            *(rows(16), ids(16), ids(16), rows(16, dtype)),
            *(rows(32), ids(32), ids(32), rows(16, dtype), rows(2), ids(3)),
        )
        launch_forward(everything, 64, narrow)
    launch_backward(rows(64), Places(ids(16), ids(32), ids(3), [16, 32, 64]), Wanted(narrow, narrow, narrow))
    table = rows(16, torch.float32)
    launch_forward(Sources(ids(16), rows(16), ids(16), rows(16), ids(16), ids(16), table), 32, narrow)
    launch_backward(rows(32), Places(ids(16), None, None, [16, 32, 32]), Wanted(narrow, None, None))
    for width in (torch.int64, torch.int32):
        order, bounds = ids(16).to(width), ids(3).to(width)
        latents = Sources(
            latents=rows(16),
            latent_position_ids=order,
            latent_position_embedding=table,
            timestep_embedding=rows(2),
            latent_cu_seqlens=bounds,
        )
        launch_forward(latents, 16, narrow)
        launch_backward(rows(16), Places(None, None, bounds, [0, 0, 16]), Wanted(None, narrow, narrow))


CASE = Case(
    name="template_concat",
    about="text, picture and latent embeddings written to their packed rows, positions and times added",
    shapes={
        "real": {"text": 2048, "visual": 2048, "pictures": 8, "area": 4096, "dim": 3584},
        "small": {"text": 16, "visual": 16, "pictures": 8, "area": 16, "dim": 3584},
    },
    inputs=make_inputs,
    ours=ours,
    eager=eager,
    sizes=sizes,
    compile=compile_all,
    gates={
        "template_concat_forward": Gate(max_registers=60, min_occupancy=0.5),  # fp32 tables; with bf16 ones 40, 0.75
        "template_concat_backward": Gate(max_registers=40, min_occupancy=0.75),
    },
    older_gates={"template_concat_forward": Gate(60, 0.5, spill_bytes=4)},  # 3.7 on sm_100
    goal="1 launch each way, at most 1.3 times the minimum",
    max_launches=2,
    max_ratio=1.3,
)
