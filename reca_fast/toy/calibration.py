"""How often the detector is wrong where the truth is known: `python -m reca_fast.toy.calibration [COUNT]`."""

import sys
import time

from .captions import canonical, requirement_of
from .detector import detect
from .scores import Rate, rate, satisfies
from .world import POOLS, numbers, render_many, scene_of


def calibrate(pool: str, count: int) -> tuple[Rate, Rate, float]:
    """What the detector says of the first pictures of a pool.

    Returns:
        How often a picture satisfies its own dense caption, how often that of another picture drawn at random which
        shows another scene, and the milliseconds that the detector takes for a picture.
    """
    scenes = [scene_of(pool, index) for index in range(count)]
    pictures = render_many(scenes, pool, range(count))
    detect(pictures[:1])  # draws the templates
    start = time.perf_counter()
    found = detect(pictures)
    milliseconds = 1000 * (time.perf_counter() - start) / count
    own = [satisfies(requirement_of(scene), things) for scene, things in zip(scenes, found, strict=True)]
    others = numbers("calibration", pool, 0).integers(count, size=count)
    false = [
        satisfies(requirement_of(scenes[other]), things)
        for scene, other, things in zip(scenes, others, found, strict=True)
        if canonical(scenes[other]) != canonical(scene)
    ]
    return rate(own), rate(false), milliseconds


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print(f"{'pool':14}  own dense caption         another's                 ms a picture")
    for pool in POOLS:
        own, false, milliseconds = calibrate(pool, count)
        told = [f"{100 * r.value:6.2f} % ({100 * r.low:.2f} - {100 * r.high:.2f})" for r in (own, false)]
        print(f"{pool:14}  {told[0]:25} {told[1]:25} {milliseconds:.2f}")
