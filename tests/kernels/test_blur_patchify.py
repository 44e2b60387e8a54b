"""blur_patchify: Pillow's bits from plain torch, the same bits from the kernel, and mistakes that name the argument."""

from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch import Tensor

from reca_fast.data.images import patchify
from reca_fast.kernels import blur_patchify
from reca_fast.kernels.common.image_filter import PRECISION, axis_filter, height_first, resized
from reca_fast.kernels.common.implementation import kernels
from tests.combinations import sampled

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
PILLOW = int(PIL.__version__.split(".")[0])
COMMON: dict[str, Any] = {"patch_size": 14, "mean": 0.5, "std": 0.5, "dtype": torch.float32}


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Noise on one half, hard edges of black and white on the other: the worst that rounding and clipping can meet."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    hard = random.random((height, width, 1)) < 0.5
    return torch.from_numpy(np.where(hard, (pixels > 127).astype(np.uint8) * 255, pixels))


def with_pillow(image: Tensor, height: int, width: int) -> Tensor:
    resized = Image.fromarray(image.numpy()).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized))


def blurred_and_resized(image: Tensor, height: int, width: int, sigma: float) -> Tensor:
    """In fp64 without any rounding: Gaussian on the source, then bicubic, written pixel by pixel."""

    def cubic(x: float) -> float:
        x = abs(x)
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    def axis(x: np.ndarray, out: int) -> np.ndarray:
        size, scale = len(x), len(x) / out
        if sigma:
            s = sigma * scale
            reach = int(4 * s + 0.5)
            weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / s) ** 2)
            padded = np.pad(x, ((reach, reach), (0, 0), (0, 0)), mode="edge")
            x = sum(w * padded[i : i + size] for i, w in enumerate(weights / weights.sum()))
        if size == out:
            return x
        rows = []
        for o in range(out):
            centre, stretch = (o + 0.5) * scale, max(scale, 1)
            near = [i for i in range(size) if centre - 2 * stretch < i + 0.5 < centre + 2 * stretch]
            weights = np.array([cubic((i + 0.5 - centre) / stretch) for i in near])
            rows.append(np.tensordot(weights / weights.sum(), x[near], 1))
        return np.stack(rows)

    across = axis(image.double().numpy().swapaxes(0, 1), width).swapaxes(0, 1)
    return torch.from_numpy(axis(across, height)).clamp(0, 255)


@pytest.fixture
def triton_patchify():
    interpreter = pytest.importorskip("reca_fast.kernels.common.interpreter", reason="Triton is not installed")

    def run(images, **options) -> Tensor:
        with interpreter.interpreting(), kernels("triton"):
            return blur_patchify(images, **options)

    return run


RESIZES = {
    "down": ((150, 201), (28, 42)),
    "BAGEL's": ((256, 1024), (56, 224)),
    "up": ((9, 13), (28, 14)),
    "down and up": ((90, 7), (14, 28)),
    "only the width": ((28, 77), (28, 42)),
    "only the height": ((77, 28), (42, 28)),
    "tall": ((300, 70), (28, 28)),
    "as tall as it may be for the width to come first": ((172, 100), (28, 28)),
    "one row more": ((173, 100), (28, 28)),
    "one pixel": ((1, 1), (14, 14)),
    "a line": ((1, 500), (14, 14)),
    "no change": ((28, 14), (28, 14)),
}


@pytest.mark.parametrize(("before", "after"), RESIZES.values(), ids=RESIZES)
def test_resize_has_pillows_bits(before, after) -> None:
    image = picture(*before)
    got, expected = resized(image, after), with_pillow(image, *after)
    if height_first(before, after) and PILLOW < 13:
        assert (got.int() - expected.int()).abs().float().mean() <= 1
    else:
        assert torch.equal(got, expected)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("before", [(61, 40), (14, 28), (5, 3)], ids=str)
def test_blur_is_a_gaussian_on_the_source(before, sigma) -> None:
    image = picture(*before) // 2 + 64  # overshoot is not clipped, so only the two roundings of half a level remain
    error = resized(image, (14, 28), sigma).double() - blurred_and_resized(image, 14, 28, sigma)
    assert error.abs().max() <= 1.01


def test_weights_sum_to_one_and_stay_inside() -> None:
    for source, out, sigma in [(1024, 224, 0.0), (7, 98, 0.0), (100, 14, 2.0), (3, 14, 6.0), (1, 14, 0.0)]:
        start, weights = axis_filter(source, out, sigma)
        assert start.min() >= 0 and (start + len(weights)).max() <= source and (np.diff(start) >= 0).all()
        assert np.abs(weights.sum(0) - 2**PRECISION).max() <= len(weights)


def test_equals_the_data_rooms_patchify_when_nothing_is_resized() -> None:
    images = [picture(28, 42), picture(14, 14, seed=1)]
    got = blur_patchify(images, size=[(28, 42), (14, 14)], **COMMON)
    assert torch.equal(got, torch.cat([patchify(x, 14) for x in images]))


PATCHES = {
    "14": (14, [(28, 42), (14, 14), (28, 98)]),  # 98: more patches than one program has
    "16": (16, [(32, 16), (16, 32), (16, 16)]),
    "8": (8, [(8, 8), (16, 24), (8, 16)]),
    "two bands of lines": (20, [(20, 40), (20, 20), (40, 20)]),
    "wider than a program": (90, [(90, 90), (90, 90), (90, 180)]),
}


@sampled(1, patches=PATCHES, sigma=[0.0, 0.8])
def test_kernel_has_the_references_bits(patches, sigma, triton_patchify) -> None:
    patch_size, sizes = patches
    images = [picture(60, 83), picture(31, 9, seed=1), picture(190, 20, seed=2)]
    options = {"size": sizes, "patch_size": patch_size, "blur_sigma": sigma, "dtype": torch.float32}
    options |= {"mean": (0.48, 0.45, 0.40), "std": (0.26, 0.27, 0.28)}
    got, expected = triton_patchify(images, **options), blur_patchify(images, **options)
    assert torch.equal(got, expected)
    for wrong in (torch.zeros_like(got), -got, got * 1.05, got.roll(1, 0)):
        assert not torch.equal(wrong, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_are_one_cast_of_fp32(dtype, triton_patchify) -> None:
    image, options = picture(40, 40), COMMON | {"size": (28, 28)}
    expected = blur_patchify([image], **options).to(dtype)
    for run in (blur_patchify, triton_patchify):
        assert torch.equal(run([image], **(options | {"dtype": dtype})), expected)


def test_double_is_not_rounded_to_single() -> None:
    image = picture(14, 14)
    got = blur_patchify([image], size=(14, 14), **(COMMON | {"dtype": torch.float64, "mean": 0.1}))
    expected = (image.double().reshape(1, -1) / 255 - 0.1) / 0.5
    assert torch.equal(got, expected)


def test_views_of_larger_pictures(triton_patchify) -> None:
    """A crop has gaps between its rows, channels-first memory has gaps between its colours."""
    large = picture(50, 60)
    views = [large[3:40, 5:49], large.permute(2, 0, 1).contiguous().permute(1, 2, 0), large.flip(1)[::2]]
    options = COMMON | {"size": (14, 28)}
    expected = blur_patchify([x.contiguous() for x in views], **options)
    assert torch.equal(triton_patchify(views, **options), expected)
    assert torch.equal(blur_patchify(views, **options), expected)


def test_one_launch_that_touches_every_byte_once() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from bench.traffic import counting

    images = [picture(256, 200), picture(130, 256, seed=1)]
    with counting() as traffic, kernels("triton"):
        out = blur_patchify(images, size=[(56, 42), (28, 56)], **COMMON | {"dtype": torch.bfloat16})
    assert traffic.kernels == ["blur_patchify_forward"]
    assert traffic.unique_bytes <= 1.15 * (sum(x.numel() for x in images) + out.numel() * 2)
    assert traffic.bytes_written == out.numel() * 2


def test_no_images_give_no_patches() -> None:
    assert blur_patchify([], size=(14, 14), **COMMON).shape == (0, 588)
    assert blur_patchify([], size=[], **COMMON).shape == (0, 588)


def test_as_torch_sees_it() -> None:
    images, options = [picture(20, 30), picture(14, 9, seed=1)], COMMON | {"size": (14, 28)}
    arguments = (images, [14, 28, 28, 14], 14, 0.5, [0.5] * 3, [0.5] * 3, torch.bfloat16)
    torch.library.opcheck(torch.ops.reca_fast.blur_patchify.default, arguments)
    compiled = torch.compile(lambda a, b: blur_patchify([a, b], **options), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*images), blur_patchify(images, **options))


GOOD, NAN = picture(20, 20), float("nan")
MISTAKES = {
    "no rows": ([GOOD, GOOD[:0]], {}, r"images\[1\]: .*\[0, 20, 3\]"),
    "no columns": ([GOOD[:, :0]], {}, r"images\[0\]"),
    "floats": ([GOOD.float()], {}, r"images\[0\]: expected uint8"),
    "an array": ([GOOD.numpy()], {}, r"images\[0\]: expected a tensor, got ndarray"),
    "channels first": ([GOOD.permute(2, 0, 1)], {}, r"images\[0\]"),
    "two devices": ([GOOD, GOOD.to("meta")], {}, r"images\[1\]: expected the device cpu, got meta"),
    "size off the grid": ([GOOD], {"size": (28, 30)}, r"size: .*multiples of patch_size=14.*30"),
    "size zero": ([GOOD], {"size": (0, 14)}, "size: "),
    "size of floats": ([GOOD], {"size": (14.0, 28.0)}, "size: "),
    "size of one side": ([GOOD], {"size": 28}, "size: "),
    "one size too many": ([GOOD], {"size": [(14, 14), (14, 14)]}, r"size: .*\(1\), got 2"),
    "negative sigma": ([GOOD], {"blur_sigma": -1.0}, "blur_sigma: "),
    "sigma not a number": ([GOOD], {"blur_sigma": NAN}, "blur_sigma: "),
    "endless sigma": ([GOOD], {"blur_sigma": float("inf")}, "blur_sigma: "),
    "std zero": ([GOOD], {"std": (1, 0, 1)}, "std: "),
    "two means": ([GOOD], {"mean": (1, 0)}, "mean: "),
    "no patch": ([GOOD], {"patch_size": 0}, "patch_size: "),
    "whole numbers": ([GOOD], {"dtype": torch.int32}, "dtype: "),
}


@pytest.mark.parametrize(("images", "change", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_name_the_argument(images, change, message) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        blur_patchify(images, **(COMMON | {"size": (14, 28)} | change))
