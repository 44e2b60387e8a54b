"""What the parent can say about the machine without torch: packages by their metadata, the card by nvidia-smi."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.environment import ROOT, cpu_model, git

PACKAGES = ("torch", "triton", "numpy", "transformers", "diffusers", "liger-kernel", "cut-cross-entropy", "xformers")
QUERY = ("name", "compute_cap", "memory.total", "driver_version", "compute_mode", "clocks.max.sm", "power.limit")


def card() -> dict[str, str] | None:
    """The first GPU by the names of QUERY, as nvidia-smi describes it, or torch in a process of its own; None: none."""
    return _by_tool() or _by_torch()


def _by_torch() -> dict[str, str] | None:
    """For machines without nvidia-smi."""
    code = "import json, torch\np = torch.cuda.get_device_properties(0)\n"
    code += "print(json.dumps([p.name, f'{p.major}.{p.minor}', str(p.total_memory), 'unknown', 'unknown']))"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        return None
    return dict(zip(QUERY, [*json.loads(done.stdout.splitlines()[-1]), "unknown", "unknown"], strict=True))


def _by_tool() -> dict[str, str] | None:
    tool = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/local/nvidia/bin:/usr/bin:/usr/sbin")
    if tool is None:
        return None
    command = [tool, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(QUERY, values, strict=True)) if done.returncode == 0 and len(values) == len(QUERY) else None


def describe(gpu: dict[str, str] | None) -> dict[str, Any]:
    """The first line of the results."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "card": gpu,
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "revision": git("rev-parse", "HEAD"),
        "dirty": None if (changes := git("status", "--porcelain", "--untracked-files=no")) is None else bool(changes),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def why_not_importable() -> str | None:
    """None when a child will find what it imports, else the sentence that says what to do."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed for this Python."
    remedy = (
        f"run `pip install -e {ROOT}`, or without network `ln -sfn ../kernels/ops {ROOT / 'reca_fast' / 'kernels'}`."
    )
    found = importlib.util.find_spec("reca_fast.kernels")
    if found is None or found.origin is None:
        return f"reca_fast.kernels cannot be imported; {remedy}"
    folder = Path(found.origin).resolve().parent
    if folder != ROOT / "kernels" / "ops":
        return f"reca_fast.kernels would come from {folder}, not from this checkout; {remedy}"
    return None
