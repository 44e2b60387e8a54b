"""What this machine has: which device an option means, how fast a GPU can be at best, and a description for people."""

import psutil
import torch

from reca_fast.errors import UserError

PEAKS = {
    "A100": 312e12,
    "A800": 312e12,
    "A10": 125e12,
    "A40": 150e12,
    "RTX A6000": 155e12,
    "L4": 121e12,
    "L40S": 362e12,
    "L40": 181e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165e12,
    "RTX 5090": 209e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "H200": 989e12,
    "H20": 148e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "GB200": 2500e12,
}
"""Part of the device name -> FLOP/s with fp32 accumulation, without sparsity (the vendors' data sheets)."""


def peak_flops(device: torch.device) -> float | None:
    """Peak of a device in FLOP/s; None for CPUs and for GPUs that the table does not know."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    words = name.replace("-", " ").split()
    known = [part for part in PEAKS if all(word in words for word in part.split())]
    return PEAKS[max(known, key=len)] if known else None


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called auto, cpu or cuda; of several GPUs the one numbered `local_rank`. UserError if none."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={name!r}: expected auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch sees no GPU here; `reca-fast doctor` says why. Use --device cpu.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"This host has {torch.cuda.device_count()} GPUs; start at most that many processes on it "
            "(torchrun --nproc_per_node)."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def describe_machine() -> list[str]:
    """One line for the CPU and its memory, then one for every GPU, or one that says why there is none."""
    lines = [f"CPU: {psutil.cpu_count(logical=True)} cores, {psutil.virtual_memory().total / 1e9:.0f} GB of memory"]
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "its driver or device is missing" if built else "this torch is a CPU build"
        return [*lines, f"GPU: none ({why}); training runs on the CPU, which is for trying things out"]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        peak = peak_flops(torch.device("cuda", index))
        said = f"{peak / 1e12:.0f} TFLOP/s bf16 peak" if peak else "peak unknown, so no MFU"
        lines.append(f"GPU {index}: {gpu.name}, {gpu.total_memory / 1e9:.0f} GB, sm_{gpu.major}{gpu.minor}, {said}")
    return lines
