"""What the assembler makes of every kernel on every target: a table per Triton, in bench/results/.

python -m bench.compile_table                  # of the Triton that is installed
python -m bench.compile_table 3.6.0 3.7.1      # of these: each comes into a folder of its own for as long as it takes

`tests/kernels/test_compiled.py` holds every table to the gates, and the kernels to the table of the installed Triton.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from rich.console import Console
from rich.table import Table

from bench.aot import TARGETS, Compiled, assembled
from bench.environment import ROOT, environment
from bench.ops import WITH_KERNELS, case_of

VERSIONS = ("3.6.0", "3.7.1")
"""Those that have a table: torch 2.10 and 2.11 for CUDA come with the first, the pinned torch with the last."""
FIELDS = tuple(Compiled.__dataclass_fields__)


def path_of(version: str) -> Path:
    return ROOT / "bench" / "results" / f"compiled-{version}.json"


def read_table(version: str) -> Iterator[tuple[str, Compiled]]:
    """(operation, kernel) of every row."""
    for op, *values in json.loads(path_of(version).read_text())["rows"]:
        row = dict(zip(FIELDS, values, strict=True))
        for widths in ("loads", "stores", "async_copies"):
            row[widths] = {int(bits): count for bits, count in row[widths].items()}
        yield op, Compiled(**row)


def write_table(rows: list[tuple[str, Compiled]]) -> None:
    """One row a line."""
    lines = ",\n".join(json.dumps([op, *made.row().values()], separators=(",", ":")) for op, made in rows)
    head = json.dumps({"environment": environment(), "columns": ["op", *FIELDS]})
    path_of(triton.__version__).write_text(f'{head[:-1]}, "rows": [\n{lines}\n]}}\n')


def show(rows: list[tuple[str, Compiled]]) -> None:
    table = Table(title=f"kernels as Triton {triton.__version__} compiles them, none of them run")
    columns = ("kernel", "variant", "target", "warps", "registers", "spill_bytes", "shared_bytes", "occupancy")
    for column in ("op", *columns, "loads", "stores", "tensor_core", "instructions"):
        table.add_column(column)
    for op, made in rows:
        row: dict[str, Any] = made.row()
        widths = [" ".join(f"{bits}b x{n}" for bits, n in sorted(row[key].items())) for key in ("loads", "stores")]
        cells = [op, *(str(row[column]) for column in columns)]
        table.add_row(*cells, *widths, " ".join(row["tensor_core"]), str(row["instructions"]))
    Console(width=200).print(table)


def main(versions: list[str]) -> None:
    """Compile, print, write; for other versions, in a process that finds them first."""
    if not versions:
        compiling = {name: case_of(name).compile for name in WITH_KERNELS}
        rows = [
            (name, made)
            for name, compile_all in compiling.items()
            if compile_all is not None
            for target in TARGETS
            for made in assembled(compile_all, target)
        ]
        show(rows)
        write_table(rows)
    for version in versions:
        with tempfile.TemporaryDirectory() as folder:
            install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder]
            subprocess.run([*install, f"triton=={version}"], check=True)
            found = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
            subprocess.run([sys.executable, "-m", __spec__.name], check=True, env=os.environ | {"PYTHONPATH": found})


if __name__ == "__main__":
    main(sys.argv[1:])
