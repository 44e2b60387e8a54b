"""The pictures that were drawn in a parity case, drawn again with the recorded draws."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..batch import make_batch
from ..drawing import logits_behind
from ..sampling import MASKED, RecordedDraws, Step, decoding_steps
from .case import RecordedCase
from .recorded_rows import spans_of


@torch.no_grad()
def replay_drawing(case: RecordedCase, model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that was recorded of drawing: steps, then pictures, then places."""
    inputs, magvit = case.inputs, model.encoders.magvit
    pictures = [_steps(case, model, number) for number in range(len(inputs["gen_input_ids"]))]
    by_step = list(zip(*pictures, strict=True))
    yield "gen_logits", torch.stack([torch.stack([each.logits for each in steps]) for steps in by_step])
    yield "gen_mask_len", torch.stack([torch.stack([each.to_mask for each in steps]) for steps in by_step])
    yield "gen_masked_after", torch.stack([torch.stack([each.masked for each in s]) for s in by_step]).to(torch.uint8)
    codes = [steps[-1].codes for steps in pictures]
    yield "gen_tokens", torch.stack(codes)
    if magvit is not None:
        shown = next((inputs[f"pixels_{kind}"] for kind in ("t2i", "recon") if f"pixels_{kind}" in inputs), None)
        height = case.settings.image_size if shown is None else shown.shape[-2]
        yield "gen_decoded", torch.cat([magvit.decode(each.view(1, height // magvit.downsample, -1)) for each in codes])


def _steps(case: RecordedCase, model: Any, number: int) -> list[Step]:
    """The steps in which picture `number` was drawn."""
    inputs, settings, config, count = case.inputs, case.settings.gen, case.config, case.config.num_vq_tokens
    assert settings is not None, "the case draws"
    branches = [inputs["gen_input_ids"][number]]
    if settings.guidance_scale > 0:
        branches.append(inputs["gen_uncond_ids"][number])
    batch = model.encode(make_batch([spans_of("t2i", ids, None, config, count) for ids in branches]))
    start = branches[0][-1 - count : -1] - config.first_code
    start = torch.where(start == config.codebook_size, MASKED, start)
    logits = logits_behind(model, batch, len(branches), 1 + settings.guidance_scale)
    draws = RecordedDraws(inputs["gen_raw_samples"][:, number], inputs["gen_uniform"][:, number])
    return list(decoding_steps(logits, start, settings.timesteps, settings.temperature, draws))
