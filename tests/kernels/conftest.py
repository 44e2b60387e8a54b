"""Fixtures of the tests of kernels."""

import pytest

from reca_fast.kernels.common.implementation import kernels


@pytest.fixture
def triton_kernels():
    """Inside a test, the operations run their Triton kernels on CPU tensors, in Triton's interpreter."""
    interpreter = pytest.importorskip("reca_fast.kernels.common.interpreter", reason="Triton is not installed")
    with interpreter.interpreting(), kernels("triton"):
        yield
