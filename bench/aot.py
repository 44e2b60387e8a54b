"""Compile Triton kernels for GPUs that are not here, and read what the assembler made of them.

`compiling(90)` lets every launch compile for sm_90 instead of running: the production launcher decides block sizes,
warps and alignment as it would on the GPU, fed with CPU tensors whose strides and alignment are the real ones.
Registers, spills, widths and tensor-core opcodes are necessary for speed, not sufficient: nothing here was timed.
"""

import math
import re
import struct
import subprocess
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from bench.ops.case import VARIANT

TARGETS = (80, 89, 90, 100)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Per SM, from the CUDA programming guide: warps, blocks, registers, shared memory, shared memory of one block.
SM = {
    80: (64, 32, 65536, 164 * 1024, 163 * 1024),
    89: (48, 24, 65536, 100 * 1024, 99 * 1024),
    90: (64, 32, 65536, 228 * 1024, 227 * 1024),
    100: (64, 32, 65536, 228 * 1024, 227 * 1024),
}
TENSOR_CORE = {80: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
"""Opcode of a bf16 matrix product on each target."""


@dataclass(frozen=True)
class Compiled:
    """One kernel as the assembler sees it; access widths are bits per thread -> number of instructions."""

    kernel: str
    variant: str  # see bench.ops.case.variant
    target: int
    warps: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    occupancy: float  # share of the SM's warps, from registers, shared memory and block limits
    loads: dict[int, int]
    stores: dict[int, int]
    async_copies: dict[int, int]
    tensor_core: dict[str, int]
    instructions: int

    def row(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def widest_load(self) -> int:
        return max([*self.loads, *self.async_copies], default=0)

    @property
    def widest_store(self) -> int:
        return max(self.stores, default=0)


class _Driver:
    """Answers "which GPU?" and nothing else: just enough for `JITFunction.run(warmup=True)`."""

    def __init__(self, target: int) -> None:
        self.target = target
        properties = {
            "max_shared_mem": SM[target][4],
            "multiprocessor_count": 132,
            "max_num_regs": 65536,
            "warpSize": 32,
            "sm_clock_rate": 1_755_000,
            "mem_clock_rate": 2_619_000,
            "mem_bus_width": 5120,
        }
        self.utils = SimpleNamespace(get_device_properties=lambda device: properties)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.target, 32)

    def get_current_device(self) -> int:
        # Triton caches kernels per device number: a constant one would hand the first target's kernel to the second.
        return self.target

    def set_current_device(self, device: int) -> None: ...

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self):
        return lambda function, quantiles=None, **_: [0.0, 0.0, 0.0]  # autotuning takes the first configuration

    def is_active(self) -> bool:
        return True


@contextmanager
def compiling(target: int) -> Iterator[list[Any]]:
    """Inside, launches compile for sm_`target` and do not run; yields (name, kernel, variant) in launch order."""
    hits: list[Any] = []
    run = JITFunction.run
    driver.set_active(_Driver(target))

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        if hasattr(kernel, "result"):
            kernel = kernel.result()
        hits.append((self.fn.__name__, kernel, VARIANT.get()))
        return kernel

    JITFunction.run = compile_only
    try:
        yield hits
    finally:
        JITFunction.run = run
        driver._active = None


def assembled(compile_all: Callable[[], object], target: int) -> list[Compiled]:
    """Every kernel that `compile_all` launches, once per specialisation.

    One that several variants launch counts for the first of them.
    """
    with compiling(target) as hits:
        compile_all()
    return read(list({id(hit[1]): hit for hit in reversed(hits)}.values()), target)


_OPCODE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)")
_WIDTHS = (("256", 256), ("ENL2", 256), ("128", 128), ("64", 64), ("U16", 16), ("S16", 16), ("U8", 8), ("S8", 8))
_MMA = ("HMMA", "IMMA", "HGMMA", "UTCHMMA")


def _width(opcode: str) -> int:
    parts = opcode.split(".")
    return next((bits for key, bits in _WIDTHS if key in parts), 32)


def read(hits: list[Any], target: int) -> list[Compiled]:
    """What compiled kernels need, given as `compiling` yields them."""
    codes = [_code(kernel.asm["cubin"]) for _, kernel, _ in hits]
    return [
        _read(name, kernel, variant, opcodes, target)
        for (name, kernel, variant), opcodes in zip(hits, _disassembled(codes, target), strict=True)
    ]


def _code(cubin: bytes) -> bytes:
    """The instructions in an ELF file: its section .text.<kernel>."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<3H", cubin, 58)
    sections = [struct.unpack_from("<2I4Q", cubin, table + number * size) for number in range(count)]
    texts = [x for x in sections if cubin.startswith(b".text.", sections[names][4] + x[0])]
    return b"".join(cubin[start : start + length] for *_, start, length in texts)


def _disassembled(codes: list[bytes], target: int) -> list[list[str]]:
    """Opcodes of each kernel. All go through one nvdisasm, which needs longer to start than to read them."""
    ends = list(accumulate(map(len, codes)))
    found: list[list[str]] = [[] for _ in codes]
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(codes))
        file.flush()
        architecture = f"SM{target}{'a' if target >= 90 else ''}"
        listing = _tool("nvdisasm", "--binary", architecture, "-ndf", file.name)[0]
    for address, opcode in _OPCODE.findall(listing):
        found[bisect_right(ends, int(address, 16))].append(opcode)
    return found


def _read(name: str, kernel: Any, variant: str, opcodes: list[str], target: int) -> Compiled:
    """cuobjdump for registers, ptxas -v again if it spilled."""
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "k.cubin"), Path(folder, "k.ptx")
        cubin.write_bytes(kernel.asm["cubin"])
        ptx.write_text(kernel.asm["ptx"])
        usage = _tool("cuobjdump", "--dump-resource-usage", cubin)[0]
        registers = int(re.search(r"REG:(\d+)", usage)[1])  # type: ignore[index]
        spills = 0
        if "STACK:0 " not in usage:  # what is spilled needs a place
            assembler = "ptxas" if target < 90 else "ptxas-blackwell"
            architecture = f"--gpu-name=sm_{target}{'a' if target >= 90 else ''}"
            said = _tool(assembler, "-v", "--regAllocOptLevel=2", architecture, ptx, "-o", Path(folder, "out"))[1]
            spills = int(re.search(r"(\d+) bytes spill stores", said)[1])  # type: ignore[index]
    widths: dict[str, Counter[int]] = {"LDG": Counter(), "STG": Counter(), "LDGSTS": Counter()}
    for opcode in opcodes:
        if (base := opcode.split(".")[0]) in widths:
            widths[base][_width(opcode)] += 1
    heads = Counter(opcode.split(".")[0] for opcode in opcodes)
    warps, shared = kernel.metadata.num_warps, kernel.metadata.shared
    return Compiled(
        kernel=name,
        variant=variant,
        target=target,
        warps=warps,
        registers=registers,
        spill_bytes=spills,
        shared_bytes=shared,
        occupancy=_occupancy(target, registers, shared, warps),
        loads=dict(widths["LDG"]),
        stores=dict(widths["STG"]),
        async_copies=dict(widths["LDGSTS"]),
        tensor_core={key: heads[key] for key in _MMA if heads[key]},
        instructions=len(opcodes) - heads["NOP"],
    )


def _tool(name: str, *arguments: Any) -> tuple[str, str]:
    done = subprocess.run([TOOLS / name, *map(str, arguments)], capture_output=True, text=True)
    return done.stdout, done.stderr


def _occupancy(target: int, registers: int, shared: int, warps: int) -> float:
    max_warps, max_blocks, all_registers, all_shared, _ = SM[target]
    by_registers = all_registers // (math.ceil(registers * 32 / 256) * 256) // warps
    by_shared = all_shared // (shared + 1024)
    return min(max_blocks, max_warps // warps, by_registers, by_shared) * warps / max_warps
