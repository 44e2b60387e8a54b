"""Measurements in other processes: the same pictures as in this one, and none goes on when nobody waits for it."""

import os
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from dataclasses import replace

import psutil
import pytest
import torch

from reca_fast.cli.options import parse
from reca_fast.config import RunConfig
from reca_fast.errors import UserError
from reca_fast.models.tiny import make_tiny
from reca_fast.proof.measuring import Ended, Measuring, measure_folder

SIZES = "{max_size: 32, min_size: 32, stride: 8, fit: crop}"
ABANDONED = """
import os, sys, time
from reca_fast.proof.measuring import Measuring

if __name__ == "__main__":
    measuring = Measuring(1)
    print(measuring._pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


@pytest.mark.exhaustive  # two more processes that import torch
def test_processes_draw_what_one_would_have_drawn(tmp_path) -> None:
    base = make_tiny("tiny-openuni", tmp_path / "tiny-openuni")
    options = f"--config tiny-openuni|--data.condition_resize|{SIZES}|--data.target_resize|{SIZES}".replace(" ", "|", 1)
    config = parse(RunConfig, "train", options.split("|"))
    sampling = replace(config.sampling, steps=1, guidance=1.0)
    asked = {"count": 2, "seed": 3}
    pieces: list[tuple[int, int]] = []
    with Measuring(2) as measuring:
        begun = measuring.begin(base, config.data, sampling, **asked, parts=3)
        missing = measuring.begin(tmp_path / "nothing", config.data, sampling, **asked)
        drawn = begun.end(lambda *done: pieces.append(done))
        with pytest.raises(UserError, match="nothing"):
            missing.end()
        again = measuring.begin(base, config.data, sampling, count=200, seed=0)
        began = time.monotonic()
    assert time.monotonic() - began < 30  # in the middle of the last one
    with pytest.raises((Ended, CancelledError)):
        again.end()
    assert pieces == [(1, 3), (2, 3), (3, 3)]
    here = measure_folder(base, config.data, sampling, **asked)
    assert [each.prompt for each in drawn.drawn] == [each.prompt for each in here.drawn]
    assert all(torch.equal(a.picture, b.picture) for a, b in zip(drawn.drawn, here.drawn, strict=True))
    assert drawn.scores == here.scores


@pytest.mark.exhaustive  # the same
def test_a_process_ends_with_a_parent_that_was_killed(tmp_path) -> None:
    script = tmp_path / "abandoned.py"
    script.write_text(ABANDONED)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    assert psutil.wait_procs([child], timeout=30)[1] == []
