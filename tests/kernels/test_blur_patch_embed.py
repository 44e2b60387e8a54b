"""blur_patch_embed: patches times weight plus bias and position, forward and backward, kernel and reference."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reca_fast.kernels import blur_patch_embed, blur_patchify
from reca_fast.kernels.common.implementation import kernels
from tests.combinations import sampled

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
NAMES = ("embeddings", "d weight", "d bias", "d position_embedding")
PIXELS: dict[str, Any] = {"mean": (0.5, 0.4, 0.45), "std": (0.5, 0.3, 0.25)}
SHAPES = {
    # patch_size, D, size of every image
    "BAGEL's": (14, 1152, [(14, 28)] * 3),
    "odd width, more patches than a program has": (14, 33, [(28, 98), (14, 14), (28, 28)]),
    "16": (16, 264, [(16, 32), (32, 32), (16, 16)]),
    "4": (4, 24, [(8, 16), (4, 4), (8, 4)]),
    "more lines than 16": (20, 16, [(20, 40), (40, 20), (20, 20)]),
}


def pictures() -> list[Tensor]:
    """The second is so tall that its columns are filtered first, the third smaller than a patch."""
    draw = torch.Generator().manual_seed(0)
    sizes = ((40, 61), (150, 20), (5, 7))
    return [torch.randint(0, 256, (*s, 3), generator=draw, dtype=torch.int32).to(torch.uint8) for s in sizes]


def parameters(patch_size, width, sizes, dtype) -> tuple[list[Tensor], Tensor]:
    """(weight, bias, position_embedding), position_ids with repetitions."""
    draw = torch.Generator().manual_seed(1)
    shapes = ((width, patch_size**2 * 3), (width,), (9, width))
    moving = [torch.randn(s, generator=draw).mul(0.1).to(dtype).requires_grad_() for s in shapes]
    tokens = sum(h * w for h, w in sizes) // patch_size**2
    return moving, torch.randint(0, 9, (tokens,), generator=draw)


def formula(images, weight, bias, table, ids, **options) -> Tensor:
    """Patches in the dtype of the weight, then everything in fp32 or wider, one rounding."""
    patches = blur_patchify(images, dtype=torch.float32, **options).to(weight.dtype)
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (F.linear(patches.to(wide), weight.to(wide), bias.to(wide)) + table[ids].to(wide)).to(weight.dtype)


def results(run, images, moving, ids, **options) -> list[Tensor]:
    out = run(images, *moving, ids, **options)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).bfloat16().to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, moving, upstream)]


@sampled(1, shape=SHAPES, dtype=[torch.float32, torch.bfloat16, torch.float16])
def test_kernel_and_reference(shape, dtype, within_budget) -> None:
    patch_size, width, sizes = shape
    interpreter = pytest.importorskip("reca_fast.kernels.common.interpreter", reason="Triton is not installed")
    images, (moving, ids) = pictures(), parameters(patch_size, width, sizes, dtype)
    options = PIXELS | {"size": sizes, "patch_size": patch_size, "blur_sigma": 0.6}
    exact = [x.detach().double().requires_grad_() for x in moving]

    def in_double(images, weight, *rest, **options):
        patches = blur_patchify(images, dtype=torch.float32, **options).to(dtype).double()
        return F.linear(patches, weight, rest[0]) + rest[1][rest[2]]

    truth = results(in_double, images, exact, ids, **options)
    baseline = results(formula, images, moving, ids, **options)
    plain = results(blur_patch_embed, images, moving, ids, **options)
    with interpreter.interpreting(), kernels("triton"):
        fused = results(blur_patch_embed, images, moving, ids, **options)
    for name, *four in zip(NAMES, fused, plain, truth, baseline, strict=True):
        assert within_budget(four[0], *four[2:]), f"{name}, kernel"
        assert within_budget(four[1], *four[2:]), f"{name}, reference"
    got, right, like = fused[0], truth[0], baseline[0]
    dropped = got.clone()
    dropped[right.norm(dim=1).argmax()] = 0
    for wrong in (torch.zeros_like(got), -got, got * 1.05, dropped):
        assert not within_budget(wrong, right, like)


def test_gradients_are_the_numerical_ones() -> None:
    images, (moving, ids) = pictures(), parameters(4, 3, [(8, 4)] * 3, torch.float64)
    options = PIXELS | {"size": (8, 4), "patch_size": 4}
    assert torch.autograd.gradcheck(lambda *x: blur_patch_embed(images, *x, ids, **options), moving)


def test_only_wanted_gradients_are_computed() -> None:
    images, (moving, ids) = pictures(), parameters(4, 3, [(8, 4)] * 3, torch.float32)
    moving[0].requires_grad_(False)
    out = blur_patch_embed(images, *moving, ids, **PIXELS, size=(8, 4), patch_size=4)
    out.sum().backward()
    assert moving[0].grad is None
    assert moving[1].grad is not None and torch.equal(moving[1].grad, torch.full((3,), 6.0))


def test_forward_is_one_launch_without_patches_in_memory() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from bench.traffic import counting

    images, (moving, ids) = pictures(), parameters(14, 64, [(14, 28)] * 3, torch.bfloat16)
    with counting() as traffic, kernels("triton"), torch.no_grad():
        out = blur_patch_embed(images, *moving, ids, **PIXELS, size=(14, 28), patch_size=14)
    assert traffic.kernels == ["blur_patch_embed_forward"]
    assert traffic.matmuls == 0
    assert traffic.bytes_written == out.numel() * 2


def test_autocast_decides_the_dtype() -> None:
    images, (moving, ids) = pictures(), parameters(4, 8, [(8, 4)] * 3, torch.float32)
    options = PIXELS | {"size": (8, 4), "patch_size": 4}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = blur_patch_embed(images, *moving, ids, **options)
        gradients = torch.autograd.grad(out.float().sum(), moving)
    halves = [x.detach().bfloat16() for x in moving[:2]]
    assert torch.equal(out, blur_patch_embed(images, *halves, moving[2], ids, **options))
    assert [x.dtype for x in gradients] == [torch.float32] * 3


def test_no_images_give_no_embeddings() -> None:
    moving, _ = parameters(4, 8, [(8, 4)], torch.float32)
    out = blur_patch_embed([], *moving, torch.zeros(0, dtype=torch.int64), **PIXELS, size=(8, 4), patch_size=4)
    assert out.shape == (0, 8)
    assert all(not x.any() for x in torch.autograd.grad(out.sum(), moving))


def test_as_torch_sees_it() -> None:
    images, (moving, ids) = pictures(), parameters(4, 8, [(8, 4)] * 3, torch.float32)
    options = PIXELS | {"size": (8, 4), "patch_size": 4}
    arguments = (images, *moving, ids, [8, 4] * 3, 4, 0.0, [0.5] * 3, [0.5] * 3)
    torch.library.opcheck(torch.ops.reca_fast.blur_patch_embed.default, arguments)

    def run(images, *rest, **options):
        return blur_patch_embed(images, *rest, **options)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for got, expected in zip(
        results(compiled, images, moving, ids, **options), results(run, images, moving, ids, **options), strict=True
    ):
        assert torch.equal(got, expected)


MISTAKES = {
    "weight": (0, lambda x: x[:, 1:], r"weight: expected \[D, 48\]"),
    "bias": (1, lambda x: x[1:], r"bias: expected \[8\]"),
    "table": (2, lambda x: x[:, 1:], r"position_embedding: expected \[P, 8\]"),
    "too few ids": (3, lambda x: x[1:], r"position_ids: expected int64 \[6\]"),
    "ids of another dtype": (3, lambda x: x.int(), "position_ids: expected int64"),
    "id outside the table": (3, lambda x: x + 9, "position_ids: expected 0 to 8"),
    "negative id": (3, lambda x: x - 9, "position_ids: expected 0 to 8"),
    "table elsewhere": (2, lambda x: x.detach().to("meta"), "position_embedding: expected the device cpu"),
}


@pytest.mark.parametrize(("place", "change", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_name_the_argument(place, change, message) -> None:
    moving, ids = parameters(4, 8, [(8, 4)] * 3, torch.float32)
    arguments = [*moving, ids]
    arguments[place] = change(arguments[place])
    with pytest.raises(ValueError, match=f"^{message}"):
        blur_patch_embed(pictures(), *arguments, **PIXELS, size=(8, 4), patch_size=4)


def test_mistakes_in_pictures_name_the_argument() -> None:
    moving, ids = parameters(4, 8, [(8, 4)] * 3, torch.float32)
    with pytest.raises(ValueError, match=r"^size: "):
        blur_patch_embed(pictures(), *moving, ids, **PIXELS, size=(8, 5), patch_size=4)
