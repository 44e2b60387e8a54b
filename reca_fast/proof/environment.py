"""Where a result comes from: what has to be known to judge whether another one may differ from it."""

import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import xxhash

from reca_fast import __version__
from reca_fast.errors import UserError
from reca_fast.models.files.identity import identity_of_files


def environment() -> dict[str, str]:
    """Versions and processor in words; nothing in it names the machine."""
    return {
        "reca-fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def told(environments: Iterable[Mapping[str, str]]) -> str:
    """Where results come from, each kind of place among them once. Results of older versions do not say it."""
    lines = [", ".join(f"{name} {value}" for name, value in each.items()) or "not known" for each in environments]
    return "; or ".join(dict.fromkeys(lines)) + "."


def hash_of(folder: Path) -> str:
    """A checksum of all files in a checkpoint folder, by which it is recognised wherever it lies.

    Raises:
        UserError: there is no such folder, or a file cannot be read.
    """
    if not folder.is_dir():
        raise UserError(
            f"The base {folder} does not exist: make one with `python -m reca_fast.proof.pretraining` (of another "
            "model than OpenUni, with its --model), and give its folder with --base."
        )
    sums = identity_of_files(sorted(path for path in folder.rglob("*") if path.is_file()))
    return xxhash.xxh3_128("\n".join(f"{name} {value}" for name, value in sorted(sums.items())).encode()).hexdigest()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
