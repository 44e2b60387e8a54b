"""A model that draws in no time, in this process or in one that a test starts: a picture is noise of its seed, and its
first pixels say what was asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import reca_fast.layouts.draw as draw
from reca_fast.config import ModelConfig, SamplingConfig
from reca_fast.sample import Sample


@dataclass
class Settings:
    steps: int = 3


class Model:
    """Just what drawing a benchmark asks of a model."""

    MARK = "stub.json"
    PUBLISHED = ()
    SAMPLING = EDITING = Settings
    drawn_side = 16

    def __init__(self, options: ModelConfig) -> None:
        self.folder = Path(options.path)

    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir())

    def says_weights(self) -> str:
        return "weights: none"

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    def sample(
        self, conditions: Sequence[Sample], sizes: Sequence[tuple[int, int]], _: SamplingConfig, seeds: Sequence[int]
    ) -> list[Tensor]:
        texts = [bytes(sample.text.ids) for sample in conditions if sample.text]
        pictures = [noise(size, seed, text) for text, size, seed in zip(texts, sizes, seeds, strict=True)]
        for picture in pictures:
            picture[-1, -1, 0] = sum(seeds) % 251  # as rounding depends on what is drawn together
        return pictures

    def edited_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // 2, size[1] // 2

    def edit(
        self, pictures: Sequence[Tensor], instructions: Sequence[str], _: SamplingConfig, seeds: Sequence[int]
    ) -> list[Tensor]:
        sizes = [self.edited_size((picture.shape[1], picture.shape[0])) for picture in pictures]
        asked = zip(pictures, instructions, sizes, seeds, strict=True)
        return [noise(size, seed, bytes(p[0, 0].tolist()) + t.encode()) for p, t, size, seed in asked]


def noise(size: tuple[int, int], seed: int, said: bytes) -> Tensor:
    """A picture uint8 [H, W, 3] of this width and height."""
    picture = torch.randint(
        0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    picture.view(-1)[: len(said)] = torch.tensor(list(said[: picture.numel()]), dtype=torch.uint8)
    return picture


def install() -> None:
    """Let `draw_benchmark` of this process use the stub."""
    vars(draw).update(open_model=Model, fill_to_draw=lambda *_: None)
