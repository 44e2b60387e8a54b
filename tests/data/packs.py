"""Pictures in memory, loaders over them, and what is told of their packs."""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from PIL import Image
from skimage import data as photos

from reca_fast.config import DataConfig, ResizeConfig
from reca_fast.data.lanes import LaneState
from reca_fast.data.loader import Pack, PackLoader
from reca_fast.data.reasons import Reasons
from reca_fast.data.sources import Record
from reca_fast.sample import Sample
from reca_fast.schema import from_dict
from tests.builders import builder_of

SMALL = DataConfig(
    condition_resize=ResizeConfig(56, 56, 14),
    target_resize=ResizeConfig(96, 48, 16),
    tokens_per_pack=200,
    max_tokens_per_sample=180,
    packs_per_step=4,
    lookahead=8,
)


@dataclass
class Pictures:
    """A source in memory; what an exception stands for is raised when the record is read."""

    images: list[bytes | Exception]
    captions: Sequence[str | tuple[str, ...] | None] = ()
    ignored: Reasons = field(default_factory=Reasons)

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        return f"{index:03d}.jpg"

    def read(self, index: int) -> Record:
        image = self.images[index]
        if isinstance(image, Exception):
            raise image
        return Record(self.key(index), image, self.captions[index] if self.captions else None)


def jpegs(count: int) -> list[bytes]:
    """Photos cut and scaled to `count` different sizes."""
    source = Image.fromarray(photos.astronaut()).resize((128, 128))
    images = []
    for i in range(count):
        out = io.BytesIO()
        source.resize((48 + 7 * i % 90, 48 + 11 * i % 90)).save(out, "JPEG", quality=90)
        images.append(out.getvalue())
    return images


PHOTOS = Pictures(jpegs(40))


def as_list(samples: list[Sample], draw: torch.Generator) -> list[Sample]:
    """A batch that is the samples themselves."""
    return samples


def loader(source: Any, config: DataConfig, lanes: Sequence[int] | None = None, collate: Any = as_list) -> PackLoader:
    lanes = range(config.packs_per_step) if lanes is None else lanes
    return PackLoader(source, builder_of(config), config, collate, lanes)


def take(packs: PackLoader, steps: int) -> list[Pack]:
    return [pack for _ in range(steps) for pack in next(packs)]


def saved_by(packs: PackLoader) -> dict[str, LaneState]:
    """The loader's state after a round trip through a file."""
    lanes = json.loads(json.dumps({lane: asdict(state) for lane, state in packs.state_dict().items()}))
    return {lane: from_dict(LaneState, state, f"lane {lane}") for lane, state in lanes.items()}


def epoch(packs: PackLoader) -> int:
    """In which the first lane stands."""
    return next((state.next.streams["source"].epoch for state in packs.state_dict().values()), 0)


def described(packs: list[Pack]) -> dict[tuple[int, int], tuple]:
    """{(lane, number): all that the pack holds}, with pixels by their sum."""

    def sample(s: Sample) -> tuple:
        pixels = [None if image is None else int(image.long().sum()) for image in (s.condition, s.target)]
        return s.key, s.tasks, s.text, *pixels

    return {(p.lane, p.number): (p.keys, p.num_tokens, [sample(s) for s in p.batch]) for p in packs}
