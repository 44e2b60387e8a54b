"""The public checkpoint at its full size, 29 GB, with holes for data: what opening it takes of the host's memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.sparse_checkpoint import write_sparse_checkpoint, write_sparse_file
from reca_fast.models.files.write import Stored
from tests.places import ROOT

pytestmark = pytest.mark.slow

OPEN = """
import re, sys, torch
from pathlib import Path
from reca_fast.config import ModelConfig
from reca_fast.models import open_model
from reca_fast.models.files import uniform

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

torch.set_num_threads(1)
before = anonymous()
model = open_model(ModelConfig(path=sys.argv[1]))
model.module.requires_grad_(False)  # what is trained is copied, for updates never reach the file
model.fill(uniform(torch.bfloat16, "cpu"))
model.fill_encoders(torch.device("cpu"))
print(sum(p.nbytes for p in model.module.parameters()), anonymous() - before)
"""


@pytest.fixture(scope="module")
def full_size(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "BAGEL-7B-MoT"
    write_sparse_checkpoint(folder)
    return folder


def said_by(code: str, *arguments: object) -> list[float]:
    """The numbers that a program in a process of its own printed."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return [float(word) for word in run.stdout.split()]


def test_the_file_has_the_public_size_and_takes_no_disk(full_size):
    """Facts of the public file: 14,607,260,128 numbers in 1223 tensors."""
    file = (full_size / "ema.safetensors").stat()
    header = int.from_bytes((full_size / "ema.safetensors").open("rb").read(8), "little") + 8
    assert file.st_size - header == 2 * 14_607_260_128
    assert file.st_blocks * 512 < 1e6


@pytest.mark.exhaustive
def test_opening_and_filling_it_takes_the_memory_of_the_position_tables(full_size):
    weights, megabytes = said_by(OPEN, full_size)
    assert weights > 26e9 and megabytes < 400


@pytest.mark.exhaustive
def test_export_and_check_hold_a_small_part_of_a_tensor(tmp_path):
    """A tensor of 256 MB, cast on the way: what is allocated at all is bounded by the limit on it (RLIMIT_DATA)."""
    path = tmp_path / "large.safetensors"
    write_sparse_file(path, {"a": Stored(torch.bfloat16, (2**14, 2**13))})
    code = """
import resource, sys, torch
from pathlib import Path
from reca_fast.models.files import check_finite, open_weights, rewrite_weights

torch.set_num_threads(1)
path = Path(sys.argv[1])
data = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (data + 150 * 2**20,) * 2)  # private writable memory, mapped or not
check_finite(path)
with open_weights(path) as base:
    rewrite_weights(base, path.with_name("wide.safetensors"), changed={}, added={}, dtype=torch.float32)
print(path.with_name("wide.safetensors").stat().st_size)
"""
    assert said_by(code, path)[0] > 2**29
