"""Triton's interpreter after `make_exact`: bf16 as a GPU computes it, an error where it would compute nonsense, and
the compiler unharmed beside it.
"""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from reca_fast.kernels.common.interpreter import interpreting
from reca_fast.kernels.common.optional_triton import tl, triton


@triton.jit
def _scale(X, Y, factor: tl.constexpr, N: tl.constexpr, UPCAST: tl.constexpr):
    offsets = tl.arange(0, N)
    x = tl.load(X + offsets)
    if UPCAST:
        x = x.to(tl.float32)
    tl.store(Y + offsets, (x * factor).to(Y.dtype.element_ty))


@triton.jit
def _total(X, Y, N: tl.constexpr):
    tl.store(Y, tl.sum(tl.load(X + tl.arange(0, N))))


@triton.jit
def _product(A, B, C, N: tl.constexpr):
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    tl.store(C + i * N + j, tl.dot(tl.load(A + i * N + j), tl.load(B + i * N + j)))


def test_rounds_to_nearest_even() -> None:
    x = torch.randn(1024, generator=torch.Generator().manual_seed(0))
    got = torch.empty(1024, dtype=torch.bfloat16)
    with interpreting():
        _scale[(1,)](x, got, 1.0, N=1024, UPCAST=True)
    assert torch.equal(got, x.bfloat16())


def test_a_product_in_bf16_is_exact() -> None:
    a, b = (torch.randn(32, 32, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (0, 1))
    got = torch.empty(32, 32)
    with interpreting():
        _product[(1,)](a, b, got, N=32)
    torch.testing.assert_close(got, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


def test_raises_where_it_would_compute_on_bits() -> None:
    x, out = torch.ones(16, dtype=torch.bfloat16), torch.ones(16)
    with interpreting():
        with pytest.raises(Exception, match="upcast"):
            _scale[(1,)](x, out, 2.0, N=16, UPCAST=False)
        with pytest.raises(Exception, match="upcast"):
            _total[(1,)](x, out, N=16)


def test_compiles_after_interpreting() -> None:
    """The same function runs on CPU tensors and compiles for a GPU, in one process."""
    from bench.aot import compiling, read

    x, out = torch.ones(1024), torch.empty(1024)
    with interpreting():
        _scale[(1,)](x, out, 2.0, N=1024, UPCAST=True)
    with compiling(90) as hits:
        _scale[(1,)](x, out, 2.0, N=1024, UPCAST=True)
    assert torch.equal(out, x * 2)
    assert read(hits, 90)[0].widest_load == 128
