"""Every kernel compiled for four GPU generations, without a GPU: registers, spills, access widths, tensor cores.

The gates stand beside each operation in `bench/ops/`. The Triton that is installed compiles here; for each that a
supported torch comes with, `python -m bench.compile_table VERSION` has written a table, which is held to the gates too.
"""

from collections.abc import Sequence

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import triton

from bench.aot import TARGETS, TENSOR_CORE, Compiled, assembled
from bench.compile_table import VERSIONS, read_table
from bench.ops import WITH_KERNELS, case_of
from bench.ops.case import Case

pytestmark = pytest.mark.slow


def hold(case: Case, kernels: Sequence[Compiled], version: str) -> None:
    gates = case.gates_of(version)
    keys = [case.gate(made.kernel, made.variant) for made in kernels]
    assert set(keys) == gates.keys(), "a gate for every kernel, and no other"
    for key, made in zip(keys, kernels, strict=True):
        gate = gates[key]
        assert made.spill_bytes <= gate.spill_bytes, made
        assert made.registers <= gate.max_registers, made
        assert made.occupancy >= gate.min_occupancy, made
        assert made.widest_load >= gate.load_bits, made
        assert made.widest_store >= gate.store_bits, made
        if gate.tensor_core:
            assert TENSOR_CORE[made.target] in made.tensor_core, made
        if gate.max_instructions_per_element is not None:
            assert made.instructions <= gate.max_instructions_per_element * gate.elements_per_thread, made


# Each operation for one generation, so that all four occur: tables that are out of date differ there too.
FRESH = {(name, TARGETS[place % len(TARGETS)]) for place, name in enumerate(WITH_KERNELS)}
COMPILED = [
    pytest.param(
        *(name, target),
        marks=[] if (name, target) in FRESH else pytest.mark.exhaustive,
        id=f"{name}-sm_{target}",
    )
    for name in WITH_KERNELS
    for target in TARGETS
]


@pytest.mark.parametrize(("name", "target"), COMPILED)
def test_compiled_kernels_keep_their_gates(name: str, target: int) -> None:
    """What the installed Triton makes of the kernels; where a table of that version is written, just that."""
    case = case_of(name)
    assert case.compile is not None
    kernels = assembled(case.compile, target)
    hold(case, kernels, triton.__version__)
    if triton.__version__ in VERSIONS:
        written = [made for op, made in read_table(triton.__version__) if (op, made.target) == (name, target)]
        again = f"python -m bench.compile_table {' '.join(VERSIONS)}"
        assert sorted(map(str, kernels)) == sorted(map(str, written)), f"write the tables again: {again}"


@pytest.mark.parametrize("version", VERSIONS)
def test_tables_of_all_versions_keep_the_gates(version: str) -> None:
    """Tables of all supported versions keep the gates, and hold the same launches."""
    for name in WITH_KERNELS:
        kernels = [made for op, made in read_table(version) if op == name]
        assert {made.target for made in kernels} == set(TARGETS)
        hold(case_of(name), kernels, version)
    launches = [sorted((op, x.kernel, x.variant, x.target, x.warps) for op, x in read_table(v)) for v in VERSIONS]
    assert launches[0] == launches[1], f"write the tables again: python -m bench.compile_table {' '.join(VERSIONS)}"


def test_only_older_versions_may_spill() -> None:
    for name in WITH_KERNELS:
        case = case_of(name)
        assert not any(gate.spill_bytes for gate in case.gates.values())
        assert all(gate.spill_bytes <= 4 for gate in case.older_gates.values())
        assert case.older_gates.keys() <= case.gates.keys()
