"""Caches of encoded pictures that the trials of a study share.

A picture of the toy world takes longer to be drawn and encoded than to be trained on, and the arms show the same ones
in every step. So each is encoded once for all trials whose settings come to the same: whatever the seed, the number of
steps and of pictures, templates and tasks. What such a trial computes is, bit for bit, what it computes without one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import Lock

import xxhash

from reca_fast.config import RunConfig
from reca_fast.data.cache.origin import is_cropped, reads_captions, settings_of
from reca_fast.data.cache.source import CacheSource
from reca_fast.errors import UserError

FOLDER = "caches"
"""Folder in that of the runs. The caches stay there for whatever is run next: other arms, or the regression."""
SQUARE = ("--data.condition_resize.fit", "squash", "--data.target_resize.fit", "squash")
"""How every trial sees its pictures. They are squares, of which a crop shows all; but a cache would be bound to the
seed that places the crops of other pictures.
"""
COMPUTED = ("kernels", "attention")
"""Settings of the model that may change the last bits of what is encoded."""


@dataclass(frozen=True)
class SharedCache:
    """A cache that is made when the first trial needs it."""

    folder: Path
    args: tuple[str, ...]
    """What `python` runs to make it, or to go on with making it."""

    def is_whole(self) -> bool:
        """Whether all of it is there."""
        try:
            CacheSource(self.folder)
        except UserError:
            return False
        return True

    @property
    def lock(self) -> Lock:
        """Held by whoever makes it: trials that run side by side wait for one of them."""
        return _lock_of(self.folder)


@cache
def _lock_of(folder: Path) -> Lock:
    return Lock()


def shared_cache(
    runs: Path, given: Sequence[str], stages: Sequence[tuple[str, RunConfig]], content: str
) -> SharedCache | None:
    """The cache that serves all stages of a trial; None where no single one does.

    Args:
        runs: folder of the runs.
        given: options of `train`, each a name and a value, that name the recipe and change settings of it.
        stages: what these come to.
        content: checksum of the base.
    """
    configs = [config for _, config in stages]
    captions = {config.data.caption_name for config in configs if reads_captions(config.data)}
    name = min(captions, default=configs[0].data.caption_name)
    if len(captions) > 1 or any(is_cropped(config.data) or config.data.has_instructions for config in configs):
        return None
    made = [replace(config.data, caption_name=name, limit=0) for config in configs]
    wanted = [
        {
            **settings_of(config.model, data),
            **{option: getattr(config.model, option) for option in COMPUTED},
            **{"source": data.source, "device": config.device, "base": content},
        }
        for config, data in zip(configs, made, strict=True)
    ]
    if any(each != wanted[0] for each in wanted):
        return None
    number = xxhash.xxh3_64(json.dumps(wanted[0], sort_keys=True).encode()).hexdigest()
    folder = runs / FOLDER / number
    of_all = ("--data.limit", "0", "--data.tasks.reca", "1", "--data.caption_name", name)
    return SharedCache(folder, ("-m", "reca_fast", "cache", *_of_encoding(given), *of_all, "--out", str(folder)))


def _of_encoding(given: Sequence[str]) -> list[str]:
    """Those of the options, each a name and a value, that `cache` has as well as `train`."""
    known = ("--config", "--device", "--model.", "--data.")
    pairs = zip(given[::2], given[1::2], strict=True)
    return [part for pair in pairs if pair[0].startswith(known) for part in pair]
