"""The page of the regression: the bands, every path beside them, and the mutants that have to fall outside."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .environment import told
from .regression import FLOORS, REFERENCE, RULE, WAYS, Band, bands, outside, quantity
from .study import SAMPLES


def write_page(results: Mapping[str, Any], folder: Path) -> list[str]:
    """Write regression.md into a folder that exists. Returns the paths that are outside a band, and the mutants that
    are inside all of them.
    """
    (folder / "regression.md").write_text(text_of(results))
    within = bands(results["runs"][REFERENCE])
    mutants = results.get("mutants", {})
    wrong = [name for name, runs in _paths(results).items() if any(outside(run, within) for run in runs)]
    wrong += [way.name for way in WAYS if way.name not in {*results["runs"], *results["lacking"]}]
    return wrong + [name for name, mutant in mutants.items() if not outside(mutant, within)]


def text_of(results: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    reference = results["runs"][REFERENCE]
    within = bands(reference)
    what = {way.name: way.what for way in WAYS}
    rows = [_row(name, what.get(name, ""), run, within) for name, runs in _paths(results).items() for run in runs]
    empty = "| " * len(FLOORS)
    rows += [f"| {name} | {what[name]} {empty}| not run: needs {lack} |" for name, lack in results["lacking"].items()]
    known = {*results["runs"], *results["lacking"]}
    rows += [f"| {name} | {what[name]} {empty}| **failed**: its log says why |" for name in what if name not in known]
    mutants = results.get("mutants", {})
    heads = f"| {' | '.join(FLOORS)} |"
    lines = [
        "# The regression: fast paths end where the plain path ends",
        "",
        f"The recipe `{results['recipe']}`, {results['steps']} steps of {SAMPLES} samples, "
        f"{results['prompts']} prompts for each subtask. "
        "The reference is plain torch in fp32: the kernels' formulas, torch's attention, AdamW, no cache, no lever. "
        "The paths read what their own encoders made of each picture once.",
        "",
        "```",
        f"reca-fast study --regression --seeds {len(reference)} --steps {results['steps']} "
        f"--prompts {results['prompts']} --out docs/proof",
        "reca-fast study --regression --render --out docs/proof   # this page again, from regression.json alone",
        "```",
        "",
        RULE,
        "",
        f"| | {heads[2:]}",
        f"|---|{'---|' * len(FLOORS)}",
        *[f"| seed {run['seed']} | {_values(run, within)} |" for run in reference],
        f"| **band** | {' | '.join(f'{band.low:.4f} to {band.high:.4f}' for band in within.values())} |",
        "",
        "## Paths",
        "",
        f"| path | what is different | {heads[2:]} verdict |",
        f"|---|---|{'---|' * (len(FLOORS) + 1)}",
        *rows,
        "",
    ]
    if mutants:
        lines += [
            "## Mutants",
            "",
            "The same recipe with a mistake made on purpose, by a test that wraps the command line "
            "(`tests/proof/mutants.py`): each has to fall outside a band, and the last column says of which.",
            "",
            "```",
            "python -m tests.proof.mutants --out docs/proof",
            "```",
            "",
            f"| mutant | the mistake | {heads[2:]} caught by |",
            f"|---|---|{'---|' * (len(FLOORS) + 1)}",
            *[_mutant(name, mutant, within) for name, mutant in mutants.items()],
            "",
        ]
    all_runs = [run for runs in results["runs"].values() for run in runs] + list(mutants.values())
    where = told(run.get("environment", {}) for run in all_runs)
    lines += [f"Base {results['base']} (xxh3 of the folder). {where}"]
    return "\n".join(lines) + "\n"


def _paths(results: Mapping[str, Any]) -> dict[str, Any]:
    return {name: runs for name, runs in results["runs"].items() if name != REFERENCE}


def _row(name: str, what: str, run: Mapping[str, Any], within: Mapping[str, Band]) -> str:
    out = outside(run, within)
    verdict = f"**outside**: {', '.join(out)}" if out else "inside"
    return f"| {name} | {what} | {_values(run, within)} | {verdict} |"


def _mutant(name: str, mutant: Mapping[str, Any], within: Mapping[str, Band]) -> str:
    caught = ", ".join(outside(mutant, within)) or "**nothing**"
    return f"| {name} | {mutant['what']} | {_values(mutant, within)} | {caught} |"


def _values(run: Mapping[str, Any], within: Mapping[str, Band]) -> str:
    """The quantities of a run as cells; those outside their bands in bold."""
    cells = []
    for name, band in within.items():
        value = quantity(run, name)
        cells.append(f"{value:.4f}" if band.holds(value) else f"**{value:.4f}**")
    return " | ".join(cells)
