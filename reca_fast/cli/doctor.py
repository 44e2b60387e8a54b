"""`reca-fast doctor`: what this machine can run, and why not the rest."""

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass

from reca_fast import __version__
from reca_fast.cli.options import parse
from reca_fast.errors import UserError

PACKAGES = (
    "triton",
    "transformers",
    "diffusers",
    "safetensors",
    "datasets",
    "simplejpeg",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
    "xformers",
    "liger-kernel",
    "bitsandbytes",
    "torch-tb-profiler",
)


@dataclass
class DoctorOptions:
    """None: the doctor looks at everything."""


def main(args: Sequence[str]) -> int:
    parse(DoctorOptions, "doctor", args)
    import torch
    from rich.console import Console
    from rich.table import Table

    from reca_fast.hardware import describe_machine
    from reca_fast.kernels import available_backends, choose_backend, kernel_choices

    console = Console(soft_wrap=True, markup=False)
    console.print(f"reca-fast {__version__}, Python {platform.python_version()} on {platform.platform()}")
    # torch's own word: the metadata of some builds leave out for which CUDA they are.
    console.print("  ".join([f"torch {torch.__version__}", *(f"{name} {_version(name)}" for name in PACKAGES)]))
    for line in describe_machine():
        console.print(line)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for dtype in (torch.bfloat16, torch.float32):
        chosen = choose_backend("auto", device, dtype)
        table = Table(title=f"attention on {device}, {str(dtype).removeprefix('torch.')}", title_justify="left")
        for column in ("backend", "", "why not"):
            table.add_column(column)
        for name, reason in available_backends(device, dtype).items():
            mark = "active" if name == chosen else "available" if reason is None else "-"
            table.add_row(name, mark, reason or "")
        console.print(table)
    try:
        choices = kernel_choices(device)
    except ValueError as error:
        raise UserError(f"{error}.") from None
    table = Table(title=f"fused operations on {device}", title_justify="left")
    for column in ("operation", "runs as", "why"):
        table.add_column(column)
    for name, (chosen, why) in choices.items():
        table.add_row(name, chosen, why)
    console.print(table)
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(absent)"
