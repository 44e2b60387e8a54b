"""OpenUni's data side: sizes of pictures, tokens of a sample, and the batch that a pack becomes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reca_fast.config import DataConfig
from reca_fast.data.images import fitted_size
from reca_fast.data.inputs import Plan, Size
from reca_fast.errors import UserError
from reca_fast.sample import RECA, T2I, Encoded, Sample, Text, Turn

from .batch import FEATURES, LATENTS, Draws, OpenUniBatch, draw_timesteps, make_batch, to_cells
from .config import OpenUniConfig
from .tokenizer import OpenUniTokenizer


class OpenUniInputs:
    """The `Inputs` of one OpenUni under one data configuration.

    The vision tower resizes whatever it is given to its own square, so a condition may have any size. Where condition
    and target are to be the same (`data.condition_resize` is `data.target_resize`, and there is no blur), as the
    authors have it, a sample holds the picture once, as its target.

    Raises:
        UserError: the stride of targets is no multiple of the VAE's, or captions are to be learnt.
    """

    def __init__(self, config: OpenUniConfig, tokenizer: OpenUniTokenizer, data: DataConfig) -> None:
        self._config, self._tokenizer, self._data = config, tokenizer, data
        if data.target_resize.stride % config.stride:
            raise UserError(
                f"data.target_resize.stride is {data.target_resize.stride}; this model needs a multiple of "
                f"{config.stride}."
            )
        if data.tasks.i2t > 0:
            raise UserError(
                "data.tasks.i2t is above 0: OpenUni's language model is frozen and learns no captions; set it to 0."
            )
        self._one_picture = data.condition_resize == data.target_resize and data.blur_sigma == 0

    def tokenize(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def converse(self, turns: Sequence[Turn]) -> Text:
        raise UserError("OpenUni learns to say nothing: its language model is frozen. Set data.tasks.i2t to 0.")

    def plan(self, tasks: Sequence[str], size: Size, text: Text | None) -> Plan:
        """The sizes and tokens of a picture; without t2i alone, a condition takes the tokens of its square."""
        width, height = fitted_size(*size, self._data.target_resize)
        condition = None
        if set(tasks) != {T2I} and not self._one_picture:
            condition = fitted_size(*size, self._data.condition_resize)
        prompt = prompt_of(tasks, text, self._config, self._tokenizer)
        cells = (width // self._config.stride) * (height // self._config.stride)
        return Plan(condition, (width, height), len(prompt) + self._config.num_queries + cells)

    def collate(self, samples: Sequence[Sample], draw: torch.Generator) -> OpenUniBatch:
        return collate(samples, self._config, self._tokenizer, draw)


def prompt_of(tasks: Sequence[str], text: Text | None, config: OpenUniConfig, tokenizer: OpenUniTokenizer) -> list[int]:
    """The prompt of a sample: a picture and an instruction, a caption, or neither."""
    ids = None if text is None else text.ids
    if shows_picture(tasks, text):
        return tokenizer.about_picture(config.picture_tokens, ids)
    return tokenizer.request(ids)


def shows_picture(tasks: Sequence[str], text: Text | None) -> bool:
    """Whether the prompt of a sample shows a picture: unless it serves t2i alone, or `data.text_dropout` left out its
    instruction. Then the picture is left out too: guidance compares with a prompt that asks for any picture.
    """
    return set(tasks) != {T2I} and text is not None


def collate(
    samples: Sequence[Sample], config: OpenUniConfig, tokenizer: OpenUniTokenizer, draw: torch.Generator
) -> OpenUniBatch:
    """The training batch of a pack, with every random number of the step drawn from `draw`: the times, then the seed
    of the noise. Samples are sorted by the size of their targets.
    """
    samples = sorted(samples, key=lambda sample: sample.target_size or (0, 0))
    sizes = [sample.target_size for sample in samples if sample.target_size is not None]
    shapes = [(height // config.stride, width // config.stride) for width, height in sizes]
    with_picture = [sample for sample in samples if shows_picture(sample.tasks, sample.text)]
    features = _stored([sample.encoded_condition or sample.encoded_target for sample in with_picture], FEATURES)
    latents = _stored([sample.encoded_target for sample in samples], LATENTS)
    conditions = [sample.target if sample.condition is None else sample.condition for sample in with_picture]
    timesteps = draw_timesteps(torch.rand(len(samples), generator=draw))
    return make_batch(
        [prompt_of(sample.tasks, sample.text, config, tokenizer) for sample in samples],
        shapes,
        config.num_queries,
        tokenizer.picture,
        tasks=[next(task for task in (RECA, T2I) if task in sample.tasks) for sample in samples],
        conditions=tuple(picture for picture in conditions if picture is not None),
        targets=tuple(sample.target for sample in samples if sample.target is not None),
        features=torch.cat(features) if features else None,
        latents=torch.cat([to_cells(each) for each in latents]) if latents else None,
        draws=Draws(timesteps, int(torch.randint(2**62, (), generator=draw))),
    )


def _stored(pictures: Sequence[Encoded | None], name: str) -> list[Tensor]:
    """The tensor called `name` of each picture that comes encoded."""
    return [picture.tensors[name] for picture in pictures if picture is not None]
