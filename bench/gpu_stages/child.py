"""One stage in a process of its own: `python -m bench.gpu_stages.child STAGE DEVICE`.

Imports what it needs, then waits for a line with its seconds on stdin: the parent starts it while another stage still
runs. Figures go to stdout as JSON lines; what anybody prints goes to stderr. When stdin closes, the parent is gone, and
this process and its children end.
"""

import gc
import json
import os
import signal
import sys
import threading
from importlib import import_module


def main() -> None:
    stage, device = sys.argv[1:]
    figures = os.fdopen(os.dup(1), "w")  # a copy that processes started from here do not inherit
    os.dup2(2, 1)

    import torch

    from bench.gpu_stages.report import Report

    hand_in = import_module(f"bench.gpu_stages.{stage}").hand_in
    gc.collect()
    gc.freeze()  # what is imported stays: each later collection looks at what a stage left only
    seconds = sys.stdin.readline()
    if not seconds:
        return
    threading.Thread(target=end_with_the_parent, daemon=True).start()

    def write(line: dict) -> None:
        figures.write(json.dumps(line) + "\n")
        figures.flush()

    if device == "cpu":
        torch.set_num_threads(1)
    hand_in(Report(stage, torch.device(device), write, float(seconds)))


def end_with_the_parent() -> None:
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
