"""What goes wrong and is nobody's mistake: bugs, full disks, lost readers, too little memory. One sentence each."""

import os
import re
import subprocess
import sys
import tempfile

import pytest
import torch

from reca_fast.cli.failures import LESS_MEMORY, report
from reca_fast.cli.generate import GenerateOptions
from reca_fast.cli.options import option_names
from reca_fast.cli.reconstruct import ReconstructOptions
from reca_fast.config import RunConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def failing(monkeypatch, tmp_path, reca_fast):
    """failing(error): what the command says when a verb raises it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def call(error: BaseException):
        def main(args):
            raise error

        monkeypatch.setattr("reca_fast.cli.doctor.main", main)
        return reca_fast("doctor", "--some", "thing")

    return call


def test_a_bug_says_how_to_report_it(failing, tmp_path, monkeypatch) -> None:
    said = failing(KeyError("lost"))
    assert said.code == 1 and re.fullmatch(r"reca-fast: this is a bug in reca-fast, .*KeyError: 'lost'.*\n", said.err)
    (report,) = tmp_path.glob("reca-fast-bug-*.txt")
    assert str(report) in said.err and "command: reca-fast doctor --some thing" in report.read_text()
    assert "Traceback" in report.read_text() and "Traceback" not in said.err
    monkeypatch.setenv("RECA_FAST_DEBUG", "1")
    assert "Traceback" in failing(KeyError("lost")).err
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert "report it with this text:" in failing(ValueError()).err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), r"the memory does not suffice .MemoryError.; use a machine with more of it\."),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), r"the memory does not suffice .*CUDA"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "the memory does not suffice"),
        (ModuleNotFoundError("No module", name="xformers"), "the package xformers is needed"),
        (PermissionError(13, "Permission denied", "/a/b"), r"/a/b cannot be used: Permission denied\."),
    ],
)
def test_failures_of_the_machine_are_one_sentence(error, sentence, failing) -> None:
    assert re.search(sentence, failing(error).sentence)


@pytest.mark.parametrize("verb", LESS_MEMORY)
def test_what_needs_less_memory_is_an_option_of_the_verb(verb, capsys) -> None:
    assert report(MemoryError(), [verb]) == 2
    assert f"; {LESS_MEMORY[verb]}." in capsys.readouterr().err
    kind = {"train": RunConfig, "generate": GenerateOptions, "reconstruct": ReconstructOptions}[verb]
    named = set(re.findall(r"--([\w.]+)", LESS_MEMORY[verb]))
    assert named and named <= {name for name, _ in option_names(kind)}


def test_names_from_outside_stay_on_one_line(reca_fast, tmp_path) -> None:
    said = reca_fast("verify", tmp_path / "a\nb\x1b[2J")
    assert "a b\\x1b[2J does not exist" in said.sentence


def test_an_interruption_anywhere_is_one_sentence(failing) -> None:
    assert failing(KeyboardInterrupt()) == (130, "", "reca-fast: interrupted.\n")


@pytest.mark.slow
def test_output_that_nobody_takes() -> None:
    command = [sys.executable, "-m", "reca_fast", "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone, open("/dev/full", "w") as full:
        broken = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True)
        full_disk = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (broken.returncode, broken.stderr) == (141, "")
    said = "reca-fast: a file or the output cannot be written: No space left on device.\n"
    assert (full_disk.returncode, full_disk.stderr) == (2, said)


@pytest.mark.slow
def test_output_that_was_closed_or_goes_away_while_training(launch, tmp_path) -> None:
    """Nothing takes the place of a closed stdout; a reader that is gone ends the run with the exit code of the rest."""
    closed = launch(tmp_path / "closed", before="import os, sys; os.close(1); sys.stdout = None")
    assert (closed.wait(), closed.said) == (0, "")
    gone = "import os, sys; reader, writer = os.pipe(); os.close(reader); sys.stdout = open(writer, 'w')"
    broken = launch(tmp_path / "gone", before=gone)
    assert (broken.wait(), broken.said) == (141, "")


@pytest.mark.slow
def test_a_refusal_that_nobody_can_be_told() -> None:
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-m", "reca_fast", "nothing"], stderr=full).returncode == 2
