"""The norm computes what torch's does, and autocast changes neither its dtype nor what it keeps."""

import pytest
import torch

from reca_fast.models.parts.layer_norm import LayerNorm, WideLayerNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_torch_s_norm_in_the_dtype_of_its_input(dtype) -> None:
    norm, draw = LayerNorm(24, 1e-5), torch.Generator().manual_seed(0)
    for parameter in norm.parameters():
        parameter.data.normal_(generator=draw)
    x = torch.randn(7, 24, generator=draw).to(dtype).requires_grad_()
    kept: list[torch.dtype] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.dtype)
        return tensor

    keeping = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with keeping, torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    expected = torch.nn.LayerNorm.forward(norm, x.detach().float())
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=2e-2 if dtype == torch.bfloat16 else 1e-6, rtol=1e-2)
    assert dtype in kept and (dtype == torch.float32 or kept.count(torch.float32) <= 2)  # two numbers a row


def test_the_wide_norm_keeps_a_narrow_input() -> None:
    norm, draw = WideLayerNorm(24, 1e-5), torch.Generator().manual_seed(0)
    for parameter in norm.parameters():
        parameter.data.normal_(generator=draw)
    x = torch.randn(7, 3, 24, generator=draw).bfloat16().requires_grad_()
    kept: list[tuple[torch.dtype, int]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append((tensor.dtype, tensor.numel()))
        return tensor

    keeping = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with keeping, torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    weights = torch.randn(out.shape, generator=draw)
    found = torch.autograd.grad((out * weights).sum(), (x, norm.weight, norm.bias))
    plain = x.detach().float().requires_grad_()
    expected = torch.nn.LayerNorm.forward(norm, plain)
    wanted = torch.autograd.grad((expected * weights).sum(), (plain, norm.weight, norm.bias))
    assert out.dtype == torch.float32 and found[0].dtype == torch.bfloat16
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(found[0], wanted[0].bfloat16())
    torch.testing.assert_close(found[1:], wanted[1:])
    assert max(size for dtype, size in kept if dtype == torch.float32) < x.numel()
