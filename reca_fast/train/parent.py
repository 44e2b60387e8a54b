"""A process that torchrun or a study started ends when its parent is gone: nobody else could stop it, or tell how it
ended.
"""

import os
import signal
import sys
import threading
from contextlib import suppress

SECONDS = 1.0
"""From one look at the parent to the next."""
STARTED_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Variable in the environment of its processes. A run that was started alone may outlive its parent (nohup)."""
STOPS_WITH_PARENT = "RECA_FAST_STOPS_WITH_PARENT"
"""Variable that whoever starts a run may set to the number of its own process, so that the run does not outlive it,
nor do those that torchrun starts for it: torchrun itself stays.
"""


def watch_parent() -> None:
    """Stop as on SIGTERM, with the step finished and saved, once the parent of a process of torchrun or of a study is
    gone.
    """
    if STARTED_BY_TORCHRUN in os.environ or STOPS_WITH_PARENT in os.environ:
        parent = os.getppid()
        starter = int(os.environ.get(STOPS_WITH_PARENT, parent))
        threading.Thread(target=_watch, args=(parent, starter), name="watch_parent", daemon=True).start()


def _watch(parent: int, starter: int) -> None:
    never = threading.Event()
    while os.getppid() == parent and _lives(starter):  # the system gives an orphan another parent
        never.wait(SECONDS)
    with suppress(OSError, ValueError):  # the output may have gone with the parent
        gone = starter if os.getppid() == parent else parent
        print(f"The parent (process {gone}) is gone: this process stops after the step at hand.", file=sys.stderr)
        sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGTERM)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and somebody else's
        return True
    return True
