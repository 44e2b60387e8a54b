"""Drawing a benchmark goes on from where it was killed, with the same bytes, whoever draws what."""

import json
import os
import runpy
import socket
from pathlib import Path, PurePosixPath

import pytest

from reca_fast.layouts.draw import batches_of, seed_of
from reca_fast.layouts.layout import Item, Output
from tests.conftest import PROCESSES
from tests.layouts import benchmarks

INSTALL = "from tests.layouts import stub; stub.install()\n"
KILL = """
import os, signal, pathlib
renames = 0
def rename(path, target, whole=pathlib.Path.rename):
    global renames
    if pathlib.Path(target).suffix == ".png":
        renames += 1
        if renames == {at}:
            os.kill(os.getpid(), signal.SIGKILL)  # the file is written, and not yet in its place
    return whole(path, target)
pathlib.Path.rename = rename
"""


@pytest.fixture
def generate(tmp_path):
    """generate(out, *options, processes=1, before=""): processes draw GenEval; their exit codes, and what they said."""
    prompts = benchmarks.write_lines(tmp_path / "evaluation_metadata.jsonl", benchmarks.GENEVAL)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "stub.json").write_text("{}")

    def run(out: Path, *options: object, processes: int = 1, before: str = "", stub: bool = True):
        where = ["--model.path", tmp_path / "checkpoint", "--prompts", prompts, "--out", out, "--device", "cpu"]
        arguments = ["generate", "--layout", "geneval", "--per_prompt", "3", "--batch", "2", *where, *options]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started, log = [], tmp_path / "said.txt"
        log.write_text("")
        for rank in range(processes):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
            environment = {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
            job = {
                "arguments": [str(argument) for argument in arguments],
                "environment": environment if processes > 1 else {},
                "log": str(log),
                "before": (INSTALL if stub else "") + before,
            }
            script = str(Path(__file__).parents[1] / "training_process.py")
            started.append(PROCESSES.Process(target=runpy.run_path, args=(script, {"job": job}), daemon=True))
            started[-1].start()
        for process in started:
            process.join(60)
        return [process.exitcode for process in started], log.read_text()

    return run


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pictures(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(folder).items() if name != "manifest.json"}


@pytest.mark.slow
def test_kill_nine_changes_no_byte(generate, tmp_path) -> None:
    assert generate(tmp_path / "whole")[0] == [0]
    wanted = content(tmp_path / "whole")
    assert len(wanted) == 1 + 3 + 9
    for at in (1, 4, 9):
        out = tmp_path / f"killed-{at}"
        assert generate(out, before=KILL.format(at=at))[0] == [-9]
        assert not json.loads((out / "manifest.json").read_text())["complete"]
        done = {name for name in pictures(out) if name.endswith(".png")}
        assert len(done) == at - 1
        ages = {name: os.stat(out / name).st_mtime_ns for name in done}
        codes, said = generate(out)
        assert codes == [0], said
        assert pictures(out) == pictures(tmp_path / "whole")
        assert {name: os.stat(out / name).st_mtime_ns for name in done} == ages
        whole, again = (json.loads((folder / "manifest.json").read_text()) for folder in (tmp_path / "whole", out))
        assert whole | {"folder": "", "next": ""} == again | {"folder": "", "next": ""}


@pytest.mark.slow
def test_two_processes_draw_what_one_does(generate, tmp_path) -> None:
    generate(tmp_path / "one")
    codes, said = generate(tmp_path / "two", processes=2)
    assert codes == [0, 0], said
    assert pictures(tmp_path / "two") == pictures(tmp_path / "one")
    assert said.count("is for GenEval") == 1
    (tmp_path / "two" / "00001" / "samples" / "00002.png").unlink()
    assert generate(tmp_path / "two", processes=2)[0] == [0, 0]
    assert pictures(tmp_path / "two") == pictures(tmp_path / "one")
    codes, said = generate(tmp_path / "two", "--sampling.seed", 1, processes=2)
    assert codes == [2, 2]
    assert said.count("drawn with sampling.seed 0, now 1; name another --out.") == 1


@pytest.mark.slow
def test_a_real_checkpoint_draws_the_same_after_a_kill(generate, tiny_folder, tmp_path) -> None:
    options = ["--model.path", tiny_folder, "--width", 16, "--height", 16, "--sampling.steps", 2]
    more = {"stub": False}
    assert generate(tmp_path / "killed", *options, before=KILL.format(at=4), **more)[0] == [-9]
    for out in ("killed", "whole"):
        codes, said = generate(tmp_path / out, *options, **more)
        assert codes == [0], said
    assert pictures(tmp_path / "killed") == pictures(tmp_path / "whole")


def test_batches_hold_whole_files_in_their_order() -> None:
    grids = [Item(key, "x", (Output(PurePosixPath(key), (0, 1, 2, 3)),)) for key in "abc"]
    single = [Item(key, "x", tuple(Output(PurePosixPath(f"{key}{k}"), (k,)) for k in range(3))) for key in "ab"]
    names = lambda items, size: [[str(part.output.path) for part in batch] for batch in batches_of(items, size)]  # noqa: E731
    assert names(grids, 1) == names(grids, 7) == [["a"], ["b"], ["c"]]
    assert names(grids, 8) == [["a", "b"], ["c"]]
    assert names(single, 4) == [["a0", "a1", "a2", "b0"], ["b1", "b2"]]


def test_a_picture_has_a_seed_of_its_own() -> None:
    seeds = {seed_of(seed, key, number) for seed in (0, 1) for key in ("1", "11") for number in (0, 1)}
    assert len(seeds) == 8
    assert seed_of(0, "00000", 0) == seed_of(0, "00000", 0)
    assert all(0 <= seed < 2**53 for seed in seeds)
