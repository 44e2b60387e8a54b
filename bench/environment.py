"""Where a measurement was taken: written beside every result, to tell which figures may be compared."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = ("triton", "liger-kernel", "cut-cross-entropy", "quack-kernels", "flash-attn", "xformers", "transformers")
ROOT = Path(__file__).resolve().parents[1]


def environment() -> dict[str, Any]:
    """Versions, machine and commit as JSON-able values; `gpu` is null without one, `commit` and `dirty` outside git."""
    import torch  # whoever reads the rest of this page may have no use for it

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "cuda": torch.version.cuda,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def git(*arguments: str) -> str | None:
    """What git prints about this checkout; None without git or outside a checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
