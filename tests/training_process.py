"""What a process of the fixture `launch` executes: `reca-fast` with its output in a file.

The forkserver has imported everything, so a process is there in milliseconds instead of ten seconds.
"""

import os
import sys

import torch

from reca_fast.cli import main

job = globals()["job"]  # given by conftest.Training
descriptor = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(descriptor, 1)
os.dup2(descriptor, 2)
os.environ.update(job["environment"])
torch.set_num_threads(1)
exec(job["before"])  # what the test breaks first
sys.exit(main(job["arguments"]))
