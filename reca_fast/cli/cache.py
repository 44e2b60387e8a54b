"""`reca-fast cache --out CACHE`: what the frozen encoders make of every picture, computed once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from reca_fast.cli.options import parse
from reca_fast.config import DataConfig, ModelConfig, Place
from reca_fast.errors import UserError
from reca_fast.schema import Range


@dataclass
class CacheOptions:
    """Settings of the model and the data are those of `train`; those that no picture depends on have no effect."""

    out: Place = ""
    """Folder of the cache. Given the same command again, what is there is kept and the rest is made."""
    records_per_shard: Annotated[int, Range(1, 2**20)] = 128
    """Records in one file. A process that is killed loses less than one file's work."""
    device: str = "auto"
    """auto, cpu or cuda."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)


def main(args: Sequence[str]) -> int:
    options = parse(CacheOptions, "cache", args)
    if not options.out:
        raise UserError("out is empty; set --out to a folder for the cache.")
    from reca_fast.hardware import pick_device
    from reca_fast.precompute import make_cache
    from reca_fast.train.distributed import place_in_environment

    place = place_in_environment()
    make_cache(
        Path(options.out),
        options.model,
        options.data,
        device=pick_device(options.device, place.local_rank),
        records_per_shard=options.records_per_shard,
        rank=place.rank,
        world=place.world,
    )
    return 0
