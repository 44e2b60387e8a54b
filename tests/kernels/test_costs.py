"""What the planner believes of each operation, against figures worked out apart from it (docs/kernels.md)."""

import pytest

from bench.ops import NAMES
from reca_fast.kernels import costs

MB, TERA = 1e6, 1e12
BAGEL = {"tokens": 36864, "heads": 28, "kv_heads": 4, "head_dim": 128}


def test_query_key_norm_of_one_layer() -> None:
    assert costs.qk_norm_rope(**BAGEL).bytes == pytest.approx((613 + 915) * MB, rel=0.02)


def test_attention_of_a_pack() -> None:
    """4096 latents of each of 8 pictures see 4379 tokens: in every one of 28 layers, 0.515 TFLOP forward a picture."""
    cost = costs.attention(pictures=1, queries=4096, keys=4379, heads=28, kv_heads=4, head_dim=128)
    assert cost.flops == pytest.approx(3.5 * 4 * 4096 * 4379 * 3584)
    assert cost.bytes == 2 * 128 * (28 * 4096 * 6 + 4 * 4379 * 6)


def test_flow_matching_of_eight_pictures() -> None:
    assert costs.flow_matching(tokens=8 * 4096, channels=64).bytes == pytest.approx((12.7 + 16.9) * MB, rel=0.01)


@pytest.mark.parametrize(("classes", "tera"), [(58498, 3.749), (8192, 0.525)])
def test_masked_rows_of_show_o(classes: int, tera: float) -> None:
    cost = costs.fused_linear_cross_entropy(rows=5215, hidden_size=2048, classes=classes)
    assert cost.flops == pytest.approx(tera * TERA, rel=0.001)


def test_cost_of_harmons_loss_is_that_of_its_real_size() -> None:
    rows = 48 * 256 * 4
    assert costs.mar_residual_block(rows=rows, width=1536).bytes == pytest.approx((1208 + 2265) * MB, rel=0.001)
    assert costs.mar_diffusion_loss(rows=rows, channels=16).bytes == pytest.approx(9.4 * MB, rel=0.01)


def test_picture_of_a_million_pixels() -> None:
    assert costs.blur_patchify(pixels=1024**2, patches=256, patch_size=14).bytes == pytest.approx(3.45 * MB, rel=0.01)


def test_every_benchmarked_operation_has_a_cost() -> None:
    assert set(NAMES) <= set(dir(costs))
