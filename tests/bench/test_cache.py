"""The figures of a cache at BAGEL's size are those that can be worked out by hand."""

import pytest

from bench.cache import counted


@pytest.mark.slow
def test_arithmetic_and_bytes_of_one_picture() -> None:
    """Of 1024 x 1024 the VAE takes 4.9 TFLOP, as counted beside the authors' step, and leaves 32 numbers for each of
    128 x 128 cells; of 224 x 224 the ViT leaves 1152 numbers for each of 256 patches.
    """
    figures = counted()
    target, condition = figures["target 1024 x 1024"], figures["condition 224 x 224"]
    assert target["tflop"] == pytest.approx(4.9, rel=0.01) and target["mb"] == 2 * 32 * 128 * 128 / 1e6
    # two operations for each weight of 26 layers and each patch, without attention
    assert condition["tflop"] == pytest.approx(2 * 256 * 26 * (4 * 1152**2 + 2 * 1152 * 4304) / 1e12, rel=0.05)
    assert condition["mb"] == 2 * 1152 * 256 / 1e6
