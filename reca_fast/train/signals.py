"""SIGTERM and Ctrl-C end the step at hand, save, and exit; a second Ctrl-C does not wait."""

import signal
from types import FrameType


class StopRequest:
    """`requested` turns true when the process is asked to stop. A context: the old handlers come back afterwards."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
