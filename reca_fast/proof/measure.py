"""A model's marks in the toy world: it draws the prompts of each subtask and pictures that it is shown, and an exact
detector says what came of them.

Every picture has noise of its own, which depends on the seed, the subtask and the number of the prompt alone. So two
checkpoints are asked for the same pictures from the same noise, and leaving a subtask out changes no other.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from reca_fast.config import DataConfig, SamplingConfig
from reca_fast.data.images import fitted_size
from reca_fast.data.inputs import Size
from reca_fast.data.samples import SampleBuilder
from reca_fast.data.sources import open_source
from reca_fast.evaluation.intervals import Estimate, mean
from reca_fast.evaluation.reconstruction import pick_samples
from reca_fast.evaluation.similarity import psnr_of
from reca_fast.evaluation.toy_scores import summarize
from reca_fast.models import Model
from reca_fast.randomness import stable_uniform
from reca_fast.sample import Sample, Text
from reca_fast.toy import (
    EXTRA,
    RECONSTRUCTION,
    SIDE,
    SUBTASKS,
    Found,
    Prompt,
    detect,
    prompts,
    reconstruction_of,
    scene_of,
    score,
)

ASKED = (*SUBTASKS, *EXTRA, RECONSTRUCTION)
"""Everything that is measured unless told otherwise."""
POOL = "validation"
"""The pictures that are drawn again; no training sees them."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Drawn:
    """One picture that a model drew, what it should show, and what it shows."""

    prompt: Prompt  # of a reconstruction, the dense caption of the original
    picture: Tensor  # uint8 [H, W, 3]
    found: Sequence[Found]
    original: Tensor | None = None  # uint8 [H, W, 3]; of a reconstruction only

    @property
    def passed(self) -> bool:
        """Whether the picture shows exactly what it should."""
        return score(self.prompt, self.found)


@dataclass(frozen=True)
class Measured:
    """What a model drew, subtask after subtask, and its scores."""

    drawn: Sequence[Drawn]
    seed: int
    sampling: SamplingConfig  # of the prompts; reconstructions have a guidance of their own

    @cached_property
    def scores(self) -> dict[str, Estimate]:
        """The strict rate of each subtask under its name, `overall`, and lenient rates under names such as
        `dense.colours_only`, as `toy_scores.summarize` has them.
        """
        return summarize([(each.prompt, each.found) for each in self.drawn])

    @cached_property
    def psnr(self) -> Estimate | None:
        """Mean over the reconstructions of the peak signal-to-noise ratio in dB; None where there is none."""
        values = [psnr_of(each.picture, each.original) for each in self.drawn if each.original is not None]
        return mean(values) if values else None

    def of(self, subtask: str) -> list[Drawn]:
        """The pictures of one subtask, in the order of its prompts."""
        return [each for each in self.drawn if each.prompt.subtask == subtask]

    def report(self) -> dict[str, Any]:
        """The scores as plain values, for JSON."""
        return {
            "scores": {name: asdict(rate) for name, rate in self.scores.items()},
            "psnr": None if self.psnr is None else asdict(self.psnr),
            "seed": self.seed,
            "sampling": {name: value for name, value in asdict(self.sampling).items() if name != "seed"},
        }


def measure(
    model: Model,
    sampling: SamplingConfig,
    data: DataConfig,
    *,
    count: int = 200,
    subtasks: Sequence[str] = ASKED,
    seed: int = 0,
    batch: int = 64,
    reconstruction_guidance: float = 1.0,
    progress: Progress | None = None,
) -> Measured:
    """Let a model, whose weights and encoders are filled, draw what the toy world asks of it.

    Args:
        sampling: how prompts are drawn. Its seed has no effect.
        data: how pictures are shown to the model and at which size it draws them; the source in it does not matter.
        count: of prompts for each subtask, and of reconstructions.
        subtasks: some of `ASKED`.
        seed: another one draws everything from other noise.
        batch: pictures for each call of the model, which do not depend on it.
        reconstruction_guidance: the guidance of reconstructions, which are drawn from what the model saw of a picture
            and a prompt that asks for its description; 1 is none.
        progress: called with the number of pictures that are drawn and that of all of them.

    Raises:
        UserError: there is no such subtask, or the model cannot draw pictures of that size in that way.
    """
    side = fitted_size(SIDE, SIDE, data.target_resize)
    texts = [prompt for subtask in subtasks if subtask != RECONSTRUCTION for prompt in prompts(subtask, count)]
    asked = [Sample("", (), None, None, Text(tuple(model.tokenize(prompt.text)))) for prompt in texts]
    shown = _validation(model, data, count) if RECONSTRUCTION in subtasks else []
    total = len(asked) + len(shown)

    def draw(samples: Sequence[Sample], wanted: Sequence[Prompt], how: SamplingConfig, done: int) -> list[Drawn]:
        out: list[Drawn] = []
        for start in range(0, len(samples), batch):
            part, its = samples[start : start + batch], wanted[start : start + batch]
            sizes: list[Size] = [side if s.target is None else (s.target.shape[1], s.target.shape[0]) for s in part]
            with torch.inference_mode():  # a sixth faster than without gradients alone, where models are this small
                pictures = [p.cpu() for p in model.sample(part, sizes, how, seeds[done + start :][: len(part)])]
            found = detect(torch.stack(pictures).numpy())
            out += [Drawn(*each) for each in zip(its, pictures, found, (s.target for s in part), strict=True)]
            if progress is not None:
                progress(done + len(out), total)
        return out

    originals = [reconstruction_of(scene_of(POOL, index)) for index in range(len(shown))]
    seeds = _seeds(seed, [*texts, *originals])
    unguided = replace(sampling, guidance=reconstruction_guidance)
    drawn = draw(asked, texts, sampling, 0)
    return Measured([*drawn, *draw(shown, originals, unguided, len(asked))], seed, sampling)


def _validation(model: Model, data: DataConfig, count: int) -> list[Sample]:
    """The first pictures of the pool, as the model is shown them."""
    # Whatever the recipe trains on and from, these are whole pictures with a prompt.
    own = replace(data, source=f"toy:{POOL}", cache="", instructions="", serve="one", text_dropout=0.0)
    own = replace(own, limit=0, templates=1, own_templates=())  # which asks for a complete description
    return pick_samples(open_source(own), SampleBuilder(own, model.inputs(own)), count)


def _seeds(seed: int, asked: Sequence[Prompt]) -> list[int]:
    """A seed for each picture: a function of `seed`, its subtask and its number within it."""
    numbers: dict[str, int] = {}
    out = []
    for prompt in asked:
        number = numbers.get(prompt.subtask, 0)
        numbers[prompt.subtask] = number + 1
        out.append(int(stable_uniform("toy", seed, prompt.subtask, number) * 2**53))
    return out
