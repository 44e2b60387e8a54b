"""The peak of what torch's CPU allocator gave out, as torch's profiler recorded it: an independent count."""

import time
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_of(prepare: Callable[[], Callable[[], None]]) -> int:
    """Bytes at the peak of what `prepare` gives to be run, with all that `prepare` made and still holds.

    Args:
        prepare: makes what is there before, and returns what is measured.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run = prepare()
        begun = time.time_ns()
        run()
    now = most = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now) if event.start_ns() >= begun else now
    return most
