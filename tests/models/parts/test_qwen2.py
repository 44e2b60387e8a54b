"""The packed decoder computes what transformers' Qwen2 does sample by sample, with and without a prefix stream."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from reca_fast.models.parts.lean_import import lean_import
from reca_fast.models.parts.qwen2 import Qwen2Decoder, View, causal_view, view_behind
from reca_fast.models.parts.qwen2_config import Qwen2Config

with lean_import():
    from transformers import Qwen2Config as TheirConfig
    from transformers import Qwen2Model

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = Qwen2Config(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=64,
    rope_theta=1e4,
)
PREFIXES, LENGTHS = (5, 0, 3), (2, 4, 1)
"""Rows of the prefixes and of what comes behind them, of three samples."""
Rows = Sequence[Tensor]


@pytest.fixture(scope="module")
def theirs() -> Qwen2Model:
    torch.manual_seed(0)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = {name: getattr(CONFIG, name) for name in (*names, "vocab_size", "rope_theta")}
    rope = {"rope_type": "default", "rope_theta": CONFIG.rope_theta}  # where transformers 5 reads it
    model = Qwen2Model(TheirConfig(**sizes, rope_parameters=rope)).eval()
    for parameter in model.parameters():  # biases and norms that say nothing would hide their absence
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.2)
    return model


@pytest.fixture(scope="module")
def ours(theirs) -> Qwen2Decoder:
    decoder = Qwen2Decoder(CONFIG)
    state = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("embed_tokens")}
    decoder.load_state_dict(state)  # strict: the names are Qwen2's
    return decoder


@pytest.fixture
def samples() -> list[Tensor]:
    """Each sample's rows [prefix and rest, D]."""
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(a + b, 32, generator=draw) for a, b in zip(PREFIXES, LENGTHS, strict=True)]


def parted(samples: Rows) -> tuple[Tensor, Tensor]:
    """Prefix rows of all samples, and the others."""
    pairs = [x.split([a, len(x) - a]) for x, a in zip(samples, PREFIXES, strict=True)]
    return torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])


def places(starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    return torch.cat([torch.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)])


def expected(theirs: Qwen2Model, samples: Rows) -> list[Tensor]:
    return [theirs(inputs_embeds=x[None], attention_mask=torch.ones(1, len(x))).last_hidden_state[0] for x in samples]


def test_packed_samples_give_transformers_rows_and_gradients(theirs, ours, samples) -> None:
    leaves = [x.clone().requires_grad_() for x in samples]
    wanted = torch.cat(expected(theirs, leaves))
    lengths = [len(x) for x in samples]
    rows = torch.cat(samples).requires_grad_()
    got, kept = ours(ours.stream(rows, places([0, 0, 0], lengths)), causal_view(lengths), "sdpa")
    torch.testing.assert_close(got, wanted)
    assert kept == []
    wanted.square().sum().backward()
    parameters = dict(ours.named_parameters())
    gradients = torch.autograd.grad(got.square().sum(), [rows, *parameters.values()])
    torch.testing.assert_close(gradients[0], torch.cat([x.grad for x in leaves]), rtol=1e-4, atol=1e-4)
    for name, gradient in zip(parameters, gradients[1:], strict=True):
        torch.testing.assert_close(gradient, theirs.get_parameter(name).grad, rtol=1e-3, atol=1e-3)
    theirs.zero_grad()


def test_rows_behind_a_prefix_are_those_of_the_whole_sequence_and_their_gradients_too(theirs, ours, samples) -> None:
    leaves = [x.clone().requires_grad_() for x in samples]
    wanted = torch.cat([x[a:] for x, a in zip(expected(theirs, leaves), PREFIXES, strict=True)])
    prefix, rest = parted(samples)
    rest.requires_grad_()
    got, _ = ours(
        ours.stream(rest, places(PREFIXES, LENGTHS)),
        view_behind(PREFIXES, LENGTHS),
        "sdpa",
        prefix=ours.stream(prefix, places([0, 0, 0], PREFIXES)),
        prefix_view=causal_view(PREFIXES),
    )
    torch.testing.assert_close(got, wanted)
    theirs.requires_grad_(False)
    wanted.square().sum().backward()
    theirs.requires_grad_(True)
    (gradient,) = torch.autograd.grad(got.square().sum(), [rest])
    of_rest = torch.cat([x.grad[a:] for x, a in zip(leaves, PREFIXES, strict=True)])
    torch.testing.assert_close(gradient, of_rest, rtol=1e-4, atol=1e-4)


def test_no_graph_is_kept_of_a_prefix_and_nothing_of_it_is_computed_behind_the_last_keys(ours, samples) -> None:
    prefix, rest = parted(samples)
    stream = ours.stream(prefix.requires_grad_(), places([0, 0, 0], PREFIXES))
    rows = ours.stream(rest, places(PREFIXES, LENGTHS))
    layer, view = ours.layers[0], view_behind(PREFIXES, LENGTHS)
    out, prefix_out, _ = layer(rows, view, "sdpa", stream, causal_view(PREFIXES))
    assert not prefix_out.requires_grad and prefix_out.shape == prefix.shape
    last, nothing, _ = layer(rows, view, "sdpa", stream, causal_view(PREFIXES), need_prefix=False)
    assert nothing is None and torch.equal(last, out)
    (gradient,) = torch.autograd.grad(out.sum(), [prefix], allow_unused=True)
    assert gradient is None


def test_the_last_layer_gives_the_rows_that_were_asked_for(ours, samples) -> None:
    """The last rows of the first and of the third sample; the second one has none."""
    lengths = [len(x) for x in samples]
    stream = ours.stream(torch.cat(samples), places([0, 0, 0], lengths))
    whole, _ = ours(stream, causal_view(lengths), "sdpa")
    asked = torch.cat((torch.arange(4, 7), torch.arange(11, 15)))
    keys = torch.cat((torch.arange(0, 7), torch.arange(11, 15)))
    view = View(view_behind([4, 0], [3, 4]).segments, keys)
    got, _ = ours(stream, causal_view(lengths), "sdpa", asked=asked, asked_view=view)
    torch.testing.assert_close(got, whole[asked])


def test_rows_go_on_from_kept_keys_and_values(ours, samples) -> None:
    lengths = [len(x) for x in samples]
    whole, _ = ours(ours.stream(torch.cat(samples), places([0, 0, 0], lengths)), causal_view(lengths), "sdpa")
    prefix, rest = parted(samples)
    first = ours.stream(prefix, places([0, 0, 0], PREFIXES))
    _, past = ours(first, causal_view(PREFIXES), "sdpa", keep=True)
    assert [tuple(k.shape) for k, _ in past] == [(8, 2, 8)] * 3
    got, _ = ours(ours.stream(rest, places(PREFIXES, LENGTHS)), view_behind(PREFIXES, LENGTHS), "sdpa", past=past)
    ends = torch.cat([x[a:] for x, a in zip(whole.split(lengths), PREFIXES, strict=True)])
    torch.testing.assert_close(got, ends)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope_scaling"),
    ],
)
def test_another_model_s_sizes_are_refused(setting, said) -> None:
    with pytest.raises(ValueError, match=said):
        Qwen2Config(**{**vars(CONFIG), **setting})
