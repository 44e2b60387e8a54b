"""What is installed and whether it works at all: the first tensor, the first kernel, who may compute attention."""

import os
import platform
import shutil
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version

import torch

from bench.environment import PACKAGES
from reca_fast.kernels import available_backends, flow_interpolate, kernel_choices, kernels

from .report import Report, describe

MORE_PACKAGES = ("diffusers", "numpy", "simplejpeg", "bitsandbytes", "torchao", "datasets")


def hand_in(report: Report) -> None:
    report.attempt("first tensor", first_tensor, report)
    report.attempt("memory", memory, report)
    report.attempt("compiler", compiler, report)
    report.attempt("first kernel", first_kernel, report)
    report.attempt("attention", attention, report)
    report.attempt("operations", operations, report)
    report.attempt("packages", packages, report)


def first_tensor(report: Report) -> None:
    """Drivers and libraries that do not fit each other show here."""
    start = time.perf_counter()
    x = torch.ones(256, 256, device=report.device)
    correct = bool((x @ x == 256).all())
    report.figure("first product", time.perf_counter() - start, "s", expected="256 in every place", ok=correct)
    report.figure("torch", torch.__version__)
    report.figure("cuda of torch", torch.version.cuda)
    if not report.rehearsal:
        properties = torch.cuda.get_device_properties(report.device)
        report.figure("multiprocessors", properties.multi_processor_count)
        report.figure("compute capability", f"{properties.major}.{properties.minor}")


def memory(report: Report) -> None:
    if not report.rehearsal:
        free, total = torch.cuda.mem_get_info()
        report.figure("GPU memory", total / 2**30, "GiB")
        report.at_least("GPU memory free", free / total, 0.9, "of all")
    import psutil

    report.figure("host memory", psutil.virtual_memory().total / 2**30, "GiB")
    report.figure("cores", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    report.figure("disk for temporary files", shutil.disk_usage(tempfile.gettempdir()).free / 2**30, "GiB")


def compiler(report: Report) -> None:
    """Triton builds its launchers with the system's C compiler."""
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(os.environ.get("CC", name)))), None)
    report.figure("C compiler", found, expected="one that Triton finds", ok=found is not None)
    where = os.environ.get("TRITON_CACHE_DIR")
    report.figure("kernel cache", "at home" if where is None else "where TRITON_CACHE_DIR says")


def first_kernel(report: Report) -> None:
    """One kernel of ours from nothing to its result, then once more."""
    x, t = torch.randn(64, 64, device=report.device), torch.rand(64, device=report.device)
    for name in ("first launch", "second launch"):
        start = time.perf_counter()
        with kernels("auto"):
            value = flow_interpolate(x, t, noise=torch.zeros_like(x))[0, 0].item()
        right = abs(value - ((1 - t[0]) * x[0, 0]).item()) < 1e-5
        report.figure(name, (time.perf_counter() - start) * 1e3, "ms", expected="(1 - t) x", ok=right)


def attention(report: Report) -> None:
    for name, why_not in available_backends(report.device, torch.bfloat16).items():
        report.figure(f"attention {name}", why_not or "can run")


def operations(report: Report) -> None:
    for name, (chosen, why) in kernel_choices(report.device).items():
        report.figure(name, f"{chosen} ({why})")


def packages(report: Report) -> None:
    report.figure("python", platform.python_version())
    for name in (*PACKAGES, *MORE_PACKAGES):
        try:
            report.figure(name, version(name))
        except PackageNotFoundError:
            report.figure(name, "not installed")
        except Exception as error:  # damaged metadata: theirs
            report.figure(name, describe(error))
