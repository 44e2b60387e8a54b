"""Every kernel compiled for four GPU generations, without a GPU: registers, spills, access widths, tensor cores.

The gates stand beside each operation in `bench/ops/`. A table of everything compiled is written by
`python -m bench.compile_table`.
"""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from bench.aot import TARGETS, TENSOR_CORE, assembled
from bench.ops import KERNELS, load


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"sm_{target}")
@pytest.mark.parametrize("name", KERNELS)
def test_gates(name: str, target: int) -> None:
    bench = load(name)
    kernels = assembled(bench.compile, target)
    keys = [bench.gate(made.kernel, made.variant) for made in kernels]
    assert set(keys) == bench.gates.keys(), "a gate for every kernel, and no other"
    for key, made in zip(keys, kernels, strict=True):
        gate = bench.gates[key]
        assert made.spill_bytes == 0, made
        assert made.registers <= gate.max_registers, made
        assert made.occupancy >= gate.min_occupancy, made
        assert made.widest_load >= gate.load_bits, made
        assert made.widest_store >= gate.store_bits, made
        if gate.tensor_core:
            assert TENSOR_CORE[target] in made.tensor_core, made
        if gate.max_instructions_per_element is not None:
            assert made.instructions <= gate.max_instructions_per_element * gate.elements_per_thread, made
