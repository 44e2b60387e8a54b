"""Everything that is worth knowing of a GPU, in the few minutes that somebody has it.

    python bench/on_gpu.py                            # 400 seconds; whatever is worth most comes first
    python bench/on_gpu.py --seconds 120 --only smoke,attention
    python bench/on_gpu.py --device cpu               # a rehearsal: every stage at tiny sizes, no GPU needed

Each stage runs in a process of its own with a time limit, so that none can take another with it; this process never
touches the GPU. Every figure is one JSON line in --out, written at once:
`{stage, name, value, unit, expected, ok, seconds, error}`; `ok` is null for what was left out. Each run begins with a
line of the machine and ends with a table, also when it is cut short (Ctrl-C, SIGTERM). Exit code: 0 when every
figure is as expected, 1 when one is not, 2 when the run could not begin.
"""

import argparse
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.environment import ROOT
from bench.gpu_stages import NAMES, STAGES, Stage
from bench.gpu_stages.machine import card, describe, why_not_importable

RESULTS = ROOT / "bench" / "results" / "on_gpu.jsonl"
DEFAULT_TARGET = 90
GRACE = 3.0
"""Seconds between the end of a stage's time, of which it knows, and its end by force."""
PATIENCE = 3
"""How many times a stage's cap is its time on a CPU, which is there to try the stages on a machine with other work."""
LEAST = 5.0
"""A stage that would have less than this is not begun."""
TAIL = 300  # characters of what a stage that died said last

Line = dict[str, Any]


class Stopped(BaseException):
    """Somebody asked this run to end: Ctrl-C or SIGTERM."""


class Child:
    """A process in a session of its own, so that it can be ended with everything that it started."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the child
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input: IO[bytes] = self.process.stdin
        self.output: IO[bytes] = self.process.stdout
        os.set_blocking(self.output.fileno(), False)
        self.short = False  # it got less than its cap, since the run has no more
        self.began, self.limit, self._rest = time.monotonic(), float("inf"), b""

    def go(self, seconds: float) -> None:
        """Let a waiting stage begin; it is told its time, and `limit` is when it will be ended."""
        self.began = time.monotonic()
        self.limit = self.began + seconds + GRACE
        with suppress(BrokenPipeError):  # it died while it waited: its exit code tells
            self.input.write(f"{seconds}\n".encode())
            self.input.flush()

    def lines(self) -> list[str]:
        """What it has written since the last call, whole lines only."""
        while chunk := self._read():
            self._rest += chunk
        *whole, self._rest = self._rest.split(b"\n")
        return [line.decode(errors="replace") for line in whole]

    def _read(self) -> bytes:
        try:
            return os.read(self.output.fileno(), 1 << 16)
        except BlockingIOError:
            return b""

    def kill(self) -> None:
        """End it and everything of its session."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def last_words(self) -> str:
        self.said.seek(max(0, self.said.seek(0, os.SEEK_END) - 4096))
        words = self.said.read().decode(errors="replace").strip().splitlines()
        return " | ".join(words[-3:])[-TAIL:]


class Session:
    """One call of this script: its budget, its lines, the stages that wait and those that work."""

    def __init__(self, stages: list[Stage], device: str, seconds: float, out: Path, jobs: int, target: int) -> None:
        self.waiting, self.device, self.jobs, self.target = list(stages), device, jobs, target
        self.begin = time.monotonic()
        self.deadline = self.begin + seconds
        self.lines: list[Line] = []
        self.file = out.open("a", encoding="utf-8")
        self.working: dict[str, Child] = {}
        self.ready: dict[str, Child] = {}  # their imports are done, or under way
        self.compiling: list[Child] = []
        self.unwritten = False  # a line did not reach the file
        self.environment = child_environment(device)

    def record(self, line: Line) -> None:
        """To --out; when that disk is full, to the table alone."""
        self.lines.append(line)
        try:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        except OSError as error:
            if not self.unwritten:
                print(f"on_gpu: --out {self.file.name} cannot be written ({error.strerror}).", file=sys.stderr)
            self.unwritten = True

    def fault(self, stage: str, name: str, error: str, seconds: float = 0.0) -> None:
        """A line for what went wrong."""
        keys = {"stage": stage, "name": name, "value": None, "unit": "", "expected": None, "ok": False}
        self.record({**keys, "seconds": round(seconds, 3), "error": error})

    def left_out(self, stage: str, why: str, seconds: float = 0.0) -> None:
        """A line for what was not measured: neither right nor wrong."""
        keys = {"stage": stage, "name": stage, "value": None, "unit": "", "expected": None, "ok": None}
        self.record({**keys, "seconds": round(seconds, 3), "error": why})

    def prepare(self, stage: Stage) -> Child:
        """The stage's process, which imports what it needs and waits."""
        if stage.name not in self.ready:
            self.ready[stage.name] = Child(self.command(stage), self.environment)
        return self.ready[stage.name]

    def command(self, stage: Stage) -> list[str]:
        return ["-m", "bench.gpu_stages.child", stage.name, self.device]

    def compile_ahead(self, processes: int) -> None:
        """Fill Triton's cache in the background from now on."""
        for part in range(processes):
            command = ["-m", "bench.gpu_stages.warm", str(self.target), str(part), str(processes)]
            self.compiling.append(Child(command, {**self.environment, "CUDA_VISIBLE_DEVICES": ""}))

    def work(self) -> None:
        """Work until nothing is left to do or no time to do it in."""
        timed = {stage.name for stage in STAGES if stage.timed}
        while self.waiting or self.working:
            self.reap_compilers()
            while self.waiting and self.may_begin(timed):
                self.begin_next()
            if self.waiting:
                self.prepare(self.waiting[0])
            with selectors.DefaultSelector() as selector:
                for child in self.working.values():
                    selector.register(child.output, selectors.EVENT_READ)
                selector.select(0.1) if self.working else time.sleep(0.05)
            for name, child in list(self.working.items()):
                self.attend(name, child)

    def may_begin(self, timed: set[str]) -> bool:
        """A stage that measures speed has the machine for itself, compilers included."""
        if self.waiting[0].name in timed:
            return not self.working and not self.compiling
        return len(self.working) < self.jobs and not timed & self.working.keys()

    def begin_next(self) -> None:
        """Half of what is left to the next stage, as far as its cap goes; everything to the last one."""
        stage = self.waiting.pop(0)
        left = self.deadline - time.monotonic() - GRACE
        cap = stage.cap * (PATIENCE if self.device == "cpu" else 1)
        seconds = min(cap, left if not self.waiting else max(left / 2, min(left, LEAST)))
        if seconds < LEAST:
            self.left_out(stage.name, "not begun: the time of the run (--seconds) is spent")
            if stage.name in self.ready:
                self.ready.pop(stage.name).kill()
            return
        child = self.prepare(stage)
        self.working[stage.name] = self.ready.pop(stage.name)
        child.go(seconds)
        child.short = seconds < cap

    def attend(self, name: str, child: Child) -> None:
        """Take over new lines; notice an end, or bring it about."""
        ended = child.process.poll() is not None  # before reading: what it wrote last is then there
        for text in child.lines():
            self.take(name, text)
        took = time.monotonic() - child.began
        if ended:
            child.kill()  # what it may have left behind
            del self.working[name]
            if code := child.process.returncode:
                how = f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
                self.fault(name, name, f"{how}; it said last: {child.last_words()}", took)
        elif time.monotonic() > child.limit:
            child.kill()
            del self.working[name]
            if child.short:
                self.left_out(name, f"the rest: {took:.0f} s were all that the run had for it (--seconds)", took)
            else:
                self.fault(name, name, f"ended at its limit of {took:.0f} s; it said last: {child.last_words()}", took)

    def take(self, name: str, text: str) -> None:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            self.fault(name, "a line that is no JSON", text[:TAIL])
            return
        self.record(line)
        mark = {True: "ok  ", False: "FAIL", None: "-   "}[line["ok"]]
        print(f"{time.monotonic() - self.begin:6.1f} s  {mark} {shown(line)}", flush=True)

    def reap_compilers(self) -> None:
        """One line for all compilers once the last has ended; after a fifth of the run they are ended."""
        if not self.compiling or (
            any(child.process.poll() is None for child in self.compiling)
            and time.monotonic() - self.begin < 0.2 * (self.deadline - self.begin)
        ):
            return
        counts = [line.split() for child in self.compiling for line in child.lines()]
        unfinished = sum(child.process.poll() is None for child in self.compiling)
        failed = sum(int(bad) for _, bad in counts)
        words = next((said for child in self.compiling if failed and (said := child.last_words())), None)
        took = time.monotonic() - self.begin
        for child in self.compiling:
            child.kill()
        self.compiling.clear()
        line: Line = {"stage": "compile", "name": f"kernels compiled ahead for sm_{self.target}"}
        line |= {"value": sum(int(made) for made, _ in counts), "unit": "launches", "expected": "no failure"}
        error = f"{failed} of its launches failed: {words}" if failed else None
        if unfinished:
            error = f"{unfinished} compilers were ended after {took:.0f} s"
        self.record({**line, "ok": error is None, "seconds": round(took, 3), "error": error})

    def close(self) -> None:
        for child in (*self.working.values(), *self.ready.values(), *self.compiling):
            child.kill()
        for name in self.working:
            self.left_out(name, "cut short: the run was asked to stop")
        for stage in self.waiting:
            self.left_out(stage.name, "not begun: the run was asked to stop")
        with suppress(OSError):  # said already
            self.file.close()


def child_environment(device: str) -> dict[str, str]:
    """What children see: this checkout first, memory that grows in place, no GPU in a rehearsal."""
    environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", **os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return environment


def shown(line: Line) -> str:
    """One figure in one line."""
    value = line["value"]
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    parts = [f"{line['stage']}: {line['name']}", f"{text} {line['unit']}".strip()]
    if line["expected"] is not None:
        parts.append(f"(expected {line['expected']})")
    if line["error"]:
        parts.append(line["error"])
    return "  ".join(part for part in parts if part)


def table(lines: list[Line]) -> str:
    """Per stage how many figures are as expected, not so, left out, and seconds; then everything of the last two."""
    rows = []
    for stage in dict.fromkeys(line["stage"] for line in lines):
        own = [line for line in lines if line["stage"] == stage]
        counts = [sum(line["ok"] is ok for line in own) for ok in (True, False, None)]
        rows.append(f"{stage:12} {counts[0]:12} {counts[1]:6} {counts[2]:9} {sum(x['seconds'] for x in own):9.1f}")
    text = f"\n{'stage':12} {'as expected':>12} {'not':>6} {'left out':>9} {'seconds':>9}\n" + "\n".join(rows)
    for ok, title in ((None, "left out"), (False, "not as expected")):
        if these := [line for line in lines if line["ok"] is ok]:
            text += f"\n\n{title}:\n" + "\n".join(f"  {shown(line)}" for line in these)
    return text


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=400.0, help="for everything together (default: %(default)g)")
    parser.add_argument("--only", metavar="STAGE[,STAGE]", help="these stages alone (see --list)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="figures are appended here (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="list the stages and run none")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal at tiny sizes")
    parser.add_argument("--jobs", type=int, help="stages side by side, of those that measure no speed")
    args = parser.parse_args()
    args.stages = list(STAGES)
    if args.only is not None:
        wanted = args.only.split(",")
        if unknown := [name for name in wanted if name not in NAMES]:
            parser.error(f"--only: there is no stage {unknown[0]!r}; there are {', '.join(NAMES)}")
        args.stages = [stage for stage in STAGES if stage.name in wanted]
    if not args.seconds > 0:
        parser.error("--seconds must be above 0")
    if args.jobs is not None and args.jobs < 1:
        parser.error("--jobs must be at least 1")
    return args


def stop(signum: int, frame: object) -> None:
    raise Stopped(signum)


def main() -> int:
    args = parse_arguments()
    if args.list:
        for stage in STAGES:
            print(f"{stage.name:12} at most {stage.cap:3.0f} s  {stage.about}")
        return 0
    gpu = card() if args.device == "cuda" else None
    problem = why_not_importable()
    if args.device == "cuda" and gpu is None:
        problem = "neither nvidia-smi nor torch finds a GPU here; `--device cpu` rehearses every stage without one."
    if problem:
        print(f"on_gpu: {problem}", file=sys.stderr)
        return 2
    cores = len(os.sched_getaffinity(0))  # as many as `taskset` leaves
    shared = gpu is None or gpu["compute_mode"] == "Default"  # else one process at a time may use the card
    jobs = args.jobs or (max(1, min(4, cores // 4)) if shared else 1)
    target = int(gpu["compute_cap"].replace(".", "")) if gpu else DEFAULT_TARGET
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        session = Session(args.stages, args.device, args.seconds, args.out, jobs, target)
    except OSError as error:
        print(f"on_gpu: --out {args.out} cannot be written ({error.strerror}).", file=sys.stderr)
        return 2
    code = 0
    try:
        if gpu is not None:
            session.compile_ahead(max(1, min(10, cores - 4)))
        here = {"stage": "environment", "name": "machine", "value": describe(gpu), "unit": "", "expected": None}
        session.record({**here, "ok": True, "seconds": 0.0, "error": None})
        session.work()
    except Stopped as stopped:
        code = 128 + stopped.args[0]
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):  # the table is written whoever asks once more
            signal.signal(number, signal.SIG_IGN)
        session.close()
        print(table(session.lines))
        written = "not all written" if session.unwritten else "written"
        print(f"\n{time.monotonic() - session.begin:.0f} s; {written}: {args.out}", flush=True)
    return code or int(session.unwritten or any(line["ok"] is False for line in session.lines))


if __name__ == "__main__":
    sys.exit(main())
