"""Our SANA computes what diffusers' does, for targets of several sizes at once, and reads its files."""

import pytest
import torch
from torch import Tensor

from reca_fast.models.openuni.config import SanaConfig
from reca_fast.models.openuni.names import SANA_NAMES
from reca_fast.models.openuni.sana import Sana, make_group
from reca_fast.models.parts.lean_import import lean_import

with lean_import():
    from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "num_layers": 2,
    "num_cross_attention_heads": 3,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": 24,
    "in_channels": 8,
    "out_channels": 8,
}
SHAPES = ((2, 4, 6), (1, 3, 5), (3, 6, 6))
"""Pictures, rows and columns of each group."""
CONTEXT = 5


@pytest.fixture(params=[{}, {"qk_norm": "rms_norm_across_heads", "attention_bias": True, "timestep_scale": 0.5}])
def pair(request) -> tuple[SanaTransformer2DModel, Sana]:
    torch.manual_seed(0)
    theirs = SanaTransformer2DModel(**SIZES, **request.param, sample_size=6)
    for parameter in theirs.parameters():  # biases and norms that say nothing would hide their absence
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.2)
    ours = Sana(SanaConfig(**SIZES, **request.param))
    stored = theirs.state_dict()
    ours.load_state_dict(
        {name: stored[SANA_NAMES.key(name)].view(tensor.shape) for name, tensor in ours.state_dict().items()}
    )
    assert len(stored) == len(ours.state_dict())
    return theirs, ours


def cells(pictures: Tensor) -> Tensor:
    """[B, C, h, w] -> [B * h * w, C]."""
    return pictures.flatten(2).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[:1]], ids=["three sizes", "one size"])
def test_velocities_and_gradients_are_those_of_diffusers(pair, shapes) -> None:
    theirs, ours = pair
    draw = torch.Generator().manual_seed(1)
    pictures = [torch.randn(n, 8, h, w, generator=draw) for n, h, w in shapes]
    count = sum(n for n, _, _ in shapes)
    context = torch.randn(count, CONTEXT, 24, generator=draw)
    times = torch.rand(count, generator=draw) * 1000
    at, wanted = 0, []
    for x in pictures:
        mine = slice(at, at + len(x))
        scale = theirs.config.timestep_scale
        wanted.append(theirs(x, context[mine], times[mine] * scale, return_dict=False)[0])
        at += len(x)
    packed = torch.cat([cells(x) for x in pictures])
    groups = [make_group(n, h, w, CONTEXT) for n, h, w in shapes]
    got = ours(packed, context.flatten(0, 1), times, groups, "sdpa")
    expected = torch.cat([cells(x) for x in wanted])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    expected.square().sum().backward()
    got.square().sum().backward()
    gradients = {name: theirs.get_parameter(SANA_NAMES.key(name)).grad for name, _ in ours.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())  # that of a key's bias is zero
    for name, parameter in ours.named_parameters():
        other = gradients[name].view(parameter.shape)
        torch.testing.assert_close(parameter.grad, other, rtol=1e-3, atol=1e-6 * largest, msg=name)
