"""What the assembler makes of every kernel on every target, as a table in bench/results/compiled.json.

python -m bench.compile_table
"""

import json

from rich.console import Console
from rich.table import Table

from bench.aot import TARGETS, assembled
from bench.environment import ROOT, environment
from bench.ops import KERNELS, load

OUT = ROOT / "bench" / "results" / "compiled.json"


def main() -> None:
    """Compile, print, write."""
    rows = []
    for name in KERNELS:
        bench = load(name)
        for target in TARGETS:
            rows += [{"op": name, **made.row()} for made in assembled(bench.compile, target)]
    table = Table(title="kernels as compiled, none of them run")
    columns = ("op", "kernel", "variant", "target", "warps", "registers", "spill_bytes", "shared_bytes", "occupancy")
    for column in (*columns, "loads", "stores", "tensor_core", "instructions"):
        table.add_column(column)
    for row in rows:
        cells = [str(row[column]) for column in columns]
        widths = [" ".join(f"{bits}b x{n}" for bits, n in sorted(row[key].items())) for key in ("loads", "stores")]
        table.add_row(*cells, *widths, " ".join(row["tensor_core"]), str(row["instructions"]))
    Console(width=200).print(table)
    OUT.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
