"""The whole model on interpreted kernels agrees with the authors' numbers, forward and backward."""

import pytest

from reca_fast.kernels import kernels

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
def test_agrees_with_the_authors(written_case, reca_fast) -> None:
    interpreter = pytest.importorskip("reca_fast.kernels.common.interpreter", reason="Triton is not installed")
    with interpreter.interpreting(), kernels("triton"):
        said = reca_fast("verify", written_case, "--attention", "sdpa", "--dtype", "fp32")
    assert said.code == 0, said.out
    assert said.out.rstrip().endswith("fp32: all agree.")
