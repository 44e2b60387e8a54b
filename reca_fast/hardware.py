"""What this machine has: which device an option means, how fast a GPU can be at best, and a description for people."""

import difflib
import re
from typing import NamedTuple

import psutil
import torch

from reca_fast.errors import UserError


class Gpu(NamedTuple):
    """One kind of GPU, from its vendor's data sheet. Rates are peaks that no program reaches."""

    name: str
    memory: int  # GB as it is sold; `usable_bytes` says what a program gets
    bandwidth: int  # GB/s of its memory
    bf16: int  # TFLOP/s of matrix products with fp32 accumulation, without sparsity
    fp8: int | None  # the same in FP8; None where it has none
    int8: int  # TOP/s in INT8
    pcie: int  # GB/s to and from the host, in each direction, as copies from pinned memory reach it
    nvlink: int  # GB/s to the other GPUs of the host in each direction; 0: over PCIe

    @property
    def usable_bytes(self) -> int:
        """Memory that a program finds free. Error correction and the driver take some 2 % of what is sold, and of the
        cards that keep their corrections in the memory itself (GDDR6 with ECC) 7.5 %.
        """
        in_band = self.name in ("A10", "A40", "L4", "L40", "L40S")
        return int(self.memory * 2**30 * (0.925 if in_band else 0.98 if self.memory < 80 else 0.99))


GPUS = (
    Gpu("RTX 3060 8GB", 8, 240, 51, None, 102, 12, 0),
    Gpu("RTX 3060", 12, 360, 51, None, 102, 12, 0),
    Gpu("RTX 3070", 8, 448, 81, None, 163, 24, 0),
    Gpu("RTX 3080", 10, 760, 119, None, 238, 24, 0),
    Gpu("RTX 3090", 24, 936, 71, None, 284, 24, 0),
    Gpu("RTX 4060", 8, 272, 60, 121, 121, 12, 0),
    Gpu("RTX 4060 Ti 8GB", 8, 288, 88, 177, 177, 12, 0),
    Gpu("RTX 4060 Ti", 16, 288, 88, 177, 177, 12, 0),
    Gpu("RTX 4070", 12, 504, 58, 117, 233, 24, 0),
    Gpu("RTX 4070 Ti Super", 16, 672, 88, 176, 353, 24, 0),
    Gpu("RTX 4080", 16, 717, 97, 195, 390, 24, 0),
    Gpu("RTX 4090", 24, 1008, 165, 330, 661, 24, 0),
    Gpu("RTX 5060 Ti 16GB", 16, 448, 47, 95, 190, 24, 0),
    Gpu("RTX 5070 Ti", 16, 896, 88, 176, 351, 48, 0),
    Gpu("RTX 5080", 16, 960, 113, 225, 450, 48, 0),
    Gpu("RTX 5090", 32, 1792, 209, 419, 838, 48, 0),
    Gpu("RTX A4000", 16, 448, 77, None, 153, 24, 0),
    Gpu("RTX A5000", 24, 768, 111, None, 222, 24, 0),
    Gpu("RTX A6000", 48, 768, 155, None, 310, 24, 56),
    Gpu("RTX 6000 Ada", 48, 960, 364, 728, 728, 24, 0),
    Gpu("RTX PRO 6000", 96, 1792, 404, 809, 809, 48, 0),
    Gpu("L4", 24, 300, 121, 242, 242, 24, 0),
    Gpu("L40", 48, 864, 181, 362, 362, 24, 0),
    Gpu("L40S", 48, 864, 362, 733, 733, 24, 0),
    Gpu("A10", 24, 600, 125, None, 250, 24, 0),
    Gpu("A40", 48, 696, 150, None, 299, 24, 56),
    Gpu("A100 40GB", 40, 1555, 312, None, 624, 24, 300),
    Gpu("A100", 80, 2039, 312, None, 624, 24, 300),
    Gpu("A800", 80, 2039, 312, None, 624, 24, 200),
    Gpu("H20", 96, 4000, 148, 296, 296, 48, 450),
    Gpu("H100 PCIe", 80, 2000, 756, 1513, 1513, 48, 300),
    Gpu("H100 NVL", 94, 3900, 835, 1671, 1671, 48, 300),
    Gpu("H100", 80, 3350, 989, 1979, 1979, 48, 450),
    Gpu("H800", 80, 3350, 989, 1979, 1979, 48, 200),
    Gpu("H200", 141, 4800, 989, 1979, 1979, 48, 450),
    Gpu("GH200", 96, 4000, 989, 1979, 1979, 200, 450),
    Gpu("B200", 180, 8000, 2250, 4500, 4500, 48, 900),
    Gpu("GB200", 186, 8000, 2500, 5000, 5000, 200, 900),
)
"""The GPUs that `reca-fast plan --gpu` knows."""

PEAKS = {gpu.name: gpu.bf16 * 1e12 for gpu in GPUS}
"""Part of the device name -> FLOP/s with fp32 accumulation, without sparsity."""


def _plain(name: str) -> str:
    """The letters and digits of a name, without the vendor's."""
    return re.sub(r"nvidia|geforce|tesla|[^a-z0-9]", "", name.lower())


def find_gpu(name: str) -> Gpu:
    """The entry of GPUS that a name means, whatever its case, spaces, hyphens and underscores. "4090" is enough.

    Raises:
        UserError: none is called so; the sentence names the nearest.
    """
    by_name = {_plain(gpu.name): gpu for gpu in GPUS}
    by_name |= {_plain(f"{gpu.name} {gpu.memory}GB"): gpu for gpu in GPUS if "GB" not in gpu.name}
    by_name |= {_plain(f"{gpu.name} {form}"): gpu for gpu in GPUS for form in ("SXM", "SXM4", "SXM5", "80GB HBM3")}
    wanted = _plain(name)
    if wanted in by_name:
        return by_name[wanted]
    ends = [gpu for plain, gpu in by_name.items() if wanted and plain.endswith(wanted)]
    if ends:
        return ends[0]
    starts = [gpu for plain, gpu in by_name.items() if wanted.startswith(plain)]
    if starts:
        return max(starts, key=lambda gpu: len(gpu.name))
    near = difflib.get_close_matches(wanted, list(by_name), n=1, cutoff=0.3)
    hint = f"; the nearest is {by_name[near[0]].name}" if near else ""
    raise UserError(f"There is no GPU {name!r} in the table{hint}. It knows {', '.join(gpu.name for gpu in GPUS)}.")


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
