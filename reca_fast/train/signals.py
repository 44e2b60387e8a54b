"""SIGTERM and Ctrl-C end the step at hand, save, and exit; a second Ctrl-C does not wait."""

import os
import signal
import sys
from types import FrameType

SHOW_CURSOR = "\x1b[?25h"


class StopRequest:
    """Listens for SIGTERM and Ctrl-C. Used as a context, it puts the old handlers back afterwards.

    Attributes:
        requested: somebody asked this process to stop.
        interrupted: it was Ctrl-C.
    """

    def __init__(self) -> None:
        self.requested = self.interrupted = False

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if number == signal.SIGINT:
            self.interrupted = True
            # The system's own handler ends the process even inside a collective that waits for ever, without a
            # traceback.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if sys.stderr.isatty():  # a progress bar has hidden the cursor, and may not live to show it
                text = f"{SHOW_CURSOR}\nStopping after this step; Ctrl-C again ends at once.\n"
                os.write(sys.stderr.fileno(), text.encode())
