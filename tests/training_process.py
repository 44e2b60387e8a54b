"""What a process of `training_runs` executes: `reca-fast` with its output in a file, or any code in its place.

The forkserver has imported everything, so a process is there in milliseconds instead of ten seconds.
"""

import os
import sys

import torch

arguments: list[str]
environment: dict[str, str]
log: str
before: str

descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(descriptor, 1)
os.dup2(descriptor, 2)
os.environ.update(environment)
torch.set_num_threads(1)
if before:
    exec(before)

from reca_fast.cli import main  # noqa: E402

sys.exit(main(arguments))
