"""What a cache is made of, and whether a run may train from it."""

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

from reca_fast.config import DataConfig, ModelConfig
from reca_fast.data.identity import identities, identity_of_source
from reca_fast.data.instructions import open_instructions
from reca_fast.data.joined import conversations_in
from reca_fast.data.sources import Source, open_source

from .format import Index, refuse_other
from .source import CacheSource

RULE = ("max_size", "min_size", "stride", "max_pixels", "fit")
OF_THE_MODEL = ("precision", "condition")
OF_CAPTIONS = ("caption_column", "caption_name")
OF_THE_DATA = (
    *("blur_sigma", "resize", "orientation", "max_image_pixels", *OF_CAPTIONS, "limit"),
    *(f"{group}.{part}" for group in ("condition_resize", "target_resize") for part in RULE),
)
"""Settings that decide what is in a cache. Which pictures and which model these are, their content tells."""
PICTURES = {"condition": ("reca", "i2t"), "target": ("reca", "t2i")}
"""What is stored of a picture -> the tasks that need it."""


def index_of(
    encoders: Mapping[str, str], source: Source, model: ModelConfig, data: DataConfig, records_per_shard: int
) -> Index:
    """What a cache is made of under these settings.

    Args:
        encoders: what the model says of them (`reca_fast.models.Model.identity_of_encoders`).
        source: the pictures.
        records_per_shard: how many records a shard shall hold.
    """
    found = identities(source)
    return Index(
        records=len(source),
        records_per_shard=records_per_shard,
        encoders=dict(encoders),
        source=found.get("data.source", {}),
        settings=settings_of(model, data),
        holds=[name for name, tasks in PICTURES.items() if any(getattr(data.tasks, task) for task in tasks)],  # type: ignore[misc]
        ignored=source.ignored,
        conversations=conversations_in(source),
        instructions=found.get("data.instructions", {}),
    )


def settings_of(model: ModelConfig, data: DataConfig) -> dict[str, Any]:
    """Dotted name -> value, of those settings that decide what is in a cache."""
    settings = {f"model.{name}": getattr(model, name) for name in OF_THE_MODEL}
    settings |= {f"data.{name}": attrgetter(name)(data) for name in OF_THE_DATA}
    if is_cropped(data) or data.limit:
        settings["data.seed"] = data.seed  # which places the crops, and draws the records
    return settings


def reads_captions(data: DataConfig) -> bool:
    """Whether a task needs them: else it does not matter which ones a cache holds."""
    return data.tasks.t2i > 0 or data.tasks.i2t > 0


def is_cropped(data: DataConfig) -> bool:
    """Whether pictures are cropped: in training each epoch draws another place, a cache holds that of the first."""
    return "crop" in (data.condition_resize.fit, data.target_resize.fit)


def check_origin(cache: CacheSource, encoders: Mapping[str, str], model: ModelConfig, data: DataConfig) -> None:
    """Refuse to train from a cache that was made by other encoders, of other data, or under other settings. Settings of
    captions count only where a task reads captions.

    Args:
        cache: the opened `data.cache`.
        encoders: identity of those of the model that is trained.

    Raises:
        UserError: it names the first difference. Pictures are compared where `data.source` is given, conversations
            where `data.instructions` is.
    """
    data = replace(data, cache="")
    of_all = cache.index.settings.get("data.limit") == 0  # then any limit can be drawn from it
    now = index_of(encoders, cache, model, replace(data, limit=0) if of_all else data, cache.index.records_per_shard)
    if not reads_captions(data):
        for name in OF_CAPTIONS:
            del now.settings[f"data.{name}"]
    if data.source and cache.index.source:
        now = replace(now, source=identity_of_source(open_source(data)))
    if data.has_instructions:
        now = replace(now, instructions=identity_of_source(open_instructions(data)))
    refuse_other(cache.index, now, cache.folder, "make another cache with `reca-fast cache`")
