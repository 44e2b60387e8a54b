"""How often the detector is wrong where the truth is known: `python -m reca_fast.toy.calibration [COUNT]`."""

import sys
import time
from dataclasses import dataclass

from .captions import canonical, requirement_of
from .detector import detect
from .scores import satisfies
from .world import POOLS, numbers, render_many, scene_of


@dataclass(frozen=True)
class Passed:
    """How many pictures passed, of how many."""

    passed: int
    count: int

    @property
    def share(self) -> float:
        return self.passed / self.count

    def __str__(self) -> str:
        return f"{self.passed} of {self.count} ({100 * self.share:.2f} %)"


def calibrate(pool: str, count: int) -> tuple[Passed, Passed, float]:
    """What the detector says of the first pictures of a pool.

    Returns:
        How often a picture satisfies its own dense caption, how often that of another picture drawn at random which
        shows another scene, and the milliseconds of processor time that the detector takes for a picture.
    """
    scenes = [scene_of(pool, index) for index in range(count)]
    pictures = render_many(scenes, pool, range(count))
    detect(pictures[:1])  # draws the templates
    start = time.process_time()
    found = detect(pictures)
    milliseconds = 1000 * (time.process_time() - start) / count
    own = [satisfies(requirement_of(scene), things) for scene, things in zip(scenes, found, strict=True)]
    others = numbers("calibration", pool, 0).integers(count, size=count)
    false = [
        satisfies(requirement_of(scenes[other]), things)
        for scene, other, things in zip(scenes, others, found, strict=True)
        if canonical(scenes[other]) != canonical(scene)
    ]
    return Passed(sum(own), len(own)), Passed(sum(false), len(false)), milliseconds


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print(f"{'pool':14} {'own dense caption':24} {'that of another scene':24} ms a picture")
    for pool in POOLS:
        own, false, milliseconds = calibrate(pool, count)
        print(f"{pool:14} {own!s:24} {false!s:24} {milliseconds:.2f}")
