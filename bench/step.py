"""The whole RECA training step, optimizer included, side by side: as the authors take it, in eager torch, and as
reca_fast takes it with each of its levers. BAGEL has a grouped and fused baseline besides.

    python bench/step.py                                     # every way of BAGEL at the recorded size: minutes a round
    python bench/step.py --model harmon                      # or openuni
    python bench/step.py --ways authors ours --rounds 3
    python bench/step.py --no-update                         # forward and backward passes alone
    python bench/step.py --size real --precision bf16        # BAGEL's width, two layers: on a GPU

Each measurement runs in a fresh process, so that one way's memory never serves another; rounds interleave the ways
(A B A B), so that a change in the machine's load meets all of them. All ways get the same weights and the same packed
inputs, in the same arithmetic. A process takes two steps before the timed ones: one to warm up, one to count memory and
floating-point operations. CPU seconds are the figure to compare on a shared machine, on a GPU the device's own; ratios
are formed inside each round, recomputation against recomputation and none against none.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.ways import MODELS, Model, Work, ways_of

RESULTS = Path(__file__).resolve().parent / "results"


def measure_here(args: argparse.Namespace) -> dict[str, Any]:
    """One way, in this process."""
    from bench.step_measure import measure

    torch.set_num_threads(args.threads)
    work = Work(args.size, args.weights, args.precision, torch.device(args.device), update=args.update)
    return measure(ways_of(args.model), args.worker, work, args.steps)


def measure_in_subprocess(way: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One way in a fresh process; its answer is the last line that it prints.

    Raises:
        RuntimeError: the process failed.
    """
    command = [sys.executable, __file__, "--model", args.model, "--worker", way, "--weights", str(folder)]
    command += ["--device", args.device]
    command += ["--size", args.size, "--precision", args.precision, "--steps", str(args.steps)]
    command += ["--threads", str(args.threads), *([] if args.update else ["--no-update"])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way} failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="bagel")
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="those to measure (the table names all)")
    parser.add_argument("--rounds", type=int, default=2, help="interleaved rounds, one process a way in each")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a process")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--size", default="recorded", help="recorded, tiny, or for BAGEL real")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the arithmetic of all ways")
    parser.add_argument("--no-update", dest="update", action="store_false", help="leave the optimizer out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="result file (JSON), with a picture beside it")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.rounds, args.steps, args.threads) < 1:
        parser.error("rounds, steps and threads must be at least 1")
    ways, sizes = ways_of(args.model).WAYS, ways_of(args.model).SIZES
    if args.size not in sizes:
        parser.error(f"{args.model} has no size {args.size!r}; it has {', '.join(sizes)}")
    if unknown := [name for name in args.ways or () if name not in ways]:
        parser.error(f"{args.model} has no way {unknown[0]!r}; it has {', '.join(map(repr, ways))}")
    impossible = [n for n in args.ways or () if not ways[n].runs(args.precision, update=args.update)]
    if impossible:
        options = f"--precision {args.precision}{'' if args.update else ' --no-update'}"
        parser.error(f"{'; '.join(impossible)}: not with {options}")
    wanted = args.ways or [name for name, way in ways.items() if way.runs(args.precision, update=args.update)]
    args.ways = [name for name in ways if name in wanted]
    args.out = args.out or RESULTS / ("step.json" if args.model == "bagel" else f"step_{args.model}.json")
    return args


def main() -> int:
    args = parse_arguments()
    if args.worker:
        print(json.dumps(measure_here(args)))
        return 0

    from bench.environment import environment
    from bench.step_report import draw, ratios, show, summarise

    model: Model = ways_of(args.model)
    console = Console(width=max(Console().width, 130))  # the table's
    rounds: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        model.write(args.size, Path(folder))
        for number in range(args.rounds):
            rounds.append({})
            for way in [way for way in args.ways if way not in failed]:
                try:
                    result = rounds[-1][way] = measure_in_subprocess(way, Path(folder), args)
                except RuntimeError as error:
                    failed[way] = str(error)
                    console.print(str(error), style="red", markup=False)
                    continue
                console.print(f"round {number + 1}/{args.rounds} {way}: {median(result['seconds']):.3g} s a step")
    rounds = [{way: figures for way, figures in r.items() if way not in failed} for r in rounds]
    if not rounds[0]:
        return 1
    summary, pairs = summarise(rounds), ratios(rounds, model.WAYS)
    what = "forward, backward, update" if args.update else "forward and backward"
    title = f"one RECA step of {args.model}, {what}; {args.size}, {args.precision}, {args.device}"
    show(console, summary, pairs, title, model.WAYS)
    keys = ("model", "size", "precision", "update", "device", "rounds", "steps", "threads")
    report: dict[str, Any] = {
        "environment": environment(),
        "setting": {key: getattr(args, key) for key in keys},
        "summary": summary,
    }
    report |= {"like_with_like": pairs, "failed": failed, "rounds": rounds}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    draw(summary, title, args.out.with_suffix(".png"), model.WAYS)
    console.print(f"written: {args.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
