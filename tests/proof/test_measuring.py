"""Measurements in other processes: none is left when nobody waits for it."""

import os
import subprocess
import sys

import psutil
import pytest

ABANDONED = """
import os, sys, time
from reca_fast.proof.measuring import Measuring

if __name__ == "__main__":
    measuring = Measuring(1)
    print(measuring._pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


@pytest.mark.exhaustive  # two processes that import torch
def test_a_process_ends_with_a_parent_that_was_killed(tmp_path) -> None:
    script = tmp_path / "abandoned.py"
    script.write_text(ABANDONED)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    assert psutil.wait_procs([child], timeout=30)[1] == []
