"""The convolution on tokens is torch's on pictures to the last bit, and a compiled block keeps no picture of it."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils.flop_counter import FlopCounterMode

from reca_fast.models.openuni.config import SanaConfig
from reca_fast.models.openuni.depthwise import depthwise_conv
from reca_fast.models.openuni.sana import GatedConv

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH = 12


def conv_of(channels: int = WIDTH) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


def on_pictures(x: Tensor, conv: nn.Conv2d, rows: int, columns: int) -> Tensor:
    return conv(x.unflatten(1, (rows, columns)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("shape", [(2, 4, 6), (1, 5, 1), (3, 1, 1)], ids=str)
def test_values_and_gradients_are_those_of_torch(shape, autocast) -> None:
    pictures, rows, columns = shape
    results = []
    for run in (on_pictures, depthwise_conv):
        conv = conv_of()
        x = torch.randn(pictures, rows * columns, WIDTH, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            out = run(x, conv, rows, columns)
        out.float().sin().sum().backward()
        results.append((out, x.grad, conv.weight.grad, conv.bias.grad))
    for theirs, ours in zip(*results, strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype


@pytest.mark.slow
@pytest.mark.parametrize("trained", [True, False])
def test_it_is_an_operation_of_torch(trained) -> None:
    """Fake tensors, autograd and dynamic shapes, as torch itself checks them; each product is counted once."""
    conv = conv_of().requires_grad_(trained)
    x = torch.randn(2, 6, WIDTH, requires_grad=True)
    torch.library.opcheck(torch.ops.reca_fast.sana_depthwise_conv.default, (x, conv.weight, conv.bias, 2, 3))
    with FlopCounterMode(display=False) as counter:
        depthwise_conv(x, conv, 2, 3).sum().backward()
    assert counter.get_total_flops() == 18 * x.numel() * (3 if trained else 2)


@pytest.mark.slow
def test_a_compiled_block_keeps_nothing_that_inductor_cannot_lay_out() -> None:
    """Inductor refuses a permuted view of unknown size among what is kept for the backward pass. Its code is C++ here,
    which takes a minute, so this looks at what its graphs would keep.
    """
    kept: list[Tensor] = []

    def look(graph: torch.fx.GraphModule, inputs: object) -> Any:
        kept.extend(node.meta["val"] for node in graph.graph.output_node().args[0] if isinstance(node, torch.fx.Node))
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_cross_attention_heads": 1, "cross_attention_head_dim": 8, "cross_attention_dim": 8}
    block = GatedConv(SanaConfig(num_attention_heads=2, attention_head_dim=4, **sizes))
    parts = {"fw_compiler": look, "bw_compiler": lambda graph, inputs: make_boxed_func(graph.forward)}
    backend = aot_autograd(**parts, partition_fn=min_cut_rematerialization_partition)
    compiled = torch.compile(block.forward, backend=backend, fullgraph=True, dynamic=True)
    for pictures, rows, columns in ((2, 4, 6), (3, 3, 5)):
        x = torch.randn(pictures, rows * columns, 8)
        gradients = []
        for run in (block.forward, compiled):
            block.zero_grad()
            run(x, rows, columns).square().sum().backward()
            gradients.append({name: parameter.grad for name, parameter in block.named_parameters()})
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    pictures_kept = [x for x in kept if isinstance(x, Tensor) and x.ndim > 3]
    assert kept and not [x.stride() for x in pictures_kept if not x.is_contiguous()]
