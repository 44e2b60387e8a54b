"""This tree and another commit, in turns, each in processes of their own."""

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.environment import ROOT
from bench.measure import Row


def compare(revision: str, ops: list[str], options: list[str], console: Console) -> int:
    """Run both on those of `ops` that both have, with more command-line `options`; print ratios; the exit code."""
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True)
    if archive.returncode:
        print(f"throughput: {revision} is not a commit of this checkout; `git log` lists them.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        trees = {"this tree": ROOT, revision: Path(folder)}
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(folder, filter="data")
        # The folder kernels/ops is reca_fast.kernels in an installation; here a link does it.
        Path(folder, "reca_fast", "kernels").symlink_to(Path(folder, "kernels", "ops"), target_is_directory=True)
        ops = [op for op in ops if Path(folder, "bench", "ops", f"{op}.py").exists()]
        if not ops:
            print(f"throughput: {revision} has none of these operations.", file=sys.stderr)
            return 2
        options = ["--op", *ops, *options]
        figures: dict[str, dict[tuple[str, str], list[Row]]] = {label: {} for label in trees}
        for _ in range(2):
            for label, tree in trees.items():
                out = Path(folder, "rows.jsonl")
                out.unlink(missing_ok=True)
                code = [sys.executable, str(tree / "bench" / "throughput.py"), *options, "--out", str(out)]
                done = subprocess.run(code, capture_output=True, text=True)
                if done.returncode:
                    print(f"throughput: {label} failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                    return 1
                for row in map(json.loads, out.read_text().splitlines()):
                    if row["provider"] == "compiler":
                        continue
                    figures[label].setdefault((row["op"], row["provider"]), []).append(row)
    table = Table(title=f"this tree / {revision} (below 1 is better)", title_justify="left")
    for column in ("operation", "implementation", "bytes", "launches", "time"):
        table.add_column(column)
    old, new = figures[revision], figures["this tree"]
    for key in (key for key in new if key in old):
        cells = []
        for read in (lambda r: r.get("bytes_over_minimum"), lambda r: r.get("launches"), _milliseconds):
            after, before = (
                min((value for r in rows if (value := read(r))), default=None) for rows in (new[key], old[key])
            )
            cells.append(f"{after / before:.3f}" if after and before else "-")
        table.add_row(*key, *cells)
    console.print(table)
    return 0


def _milliseconds(row: Row) -> float | None:
    timing = row.get("gpu_ms") or row.get("cpu_ms")
    return timing["p50"] if timing else None
