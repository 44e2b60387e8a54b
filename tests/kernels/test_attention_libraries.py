"""How attention libraries are called that have no CPU kernel here: stand-ins check every argument, so that a wrong
keyword or a wrong order of arguments fails here and not on somebody's GPU.
"""

import inspect

import pytest
import torch

from reca_fast.kernels import Varlen, varlen_attention
from reca_fast.kernels.attention import backends as attention_backends
from tests.oracles.attention import definition, inputs, ragged
from tests.oracles.attention_libraries import FLASHES, TORCHES, install, torch_2_10, torch_2_11, torch_2_13

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS = [(2, 2, 8), (4, 2, 12), (4, 1, 8), (7, 1, 72)]  # query heads, key heads, head dim: group sizes 1, 2, 4, 7

CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])


@CAUSAL
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("library", [*TORCHES, *FLASHES])
def test_libraries_are_called_as_their_signatures_say(library, heads, causal, monkeypatch) -> None:
    if library in TORCHES:
        monkeypatch.setattr(attention_backends, "varlen_attn", TORCHES[library])
        chosen = attention_backends._torch_keywords(TORCHES[library])
        monkeypatch.setattr(attention_backends, "TORCH_KEYWORDS", chosen)
        backend = "torch"
    else:
        module, function = FLASHES[library]
        install(monkeypatch, module, flash_attn_varlen_func=function)
        backend = library
    lengths = ragged(seed=2)
    q, k, v, _ = inputs(lengths, heads, torch.float64)
    segments = Varlen.from_lengths(*lengths, causal=causal)
    got = varlen_attention(q, k, v, segments, backend=backend)
    torch.testing.assert_close(got, varlen_attention(q, k, v, segments, backend="eager"))


@pytest.mark.parametrize("backend", FLASHES)
def test_deterministic_algorithms_reach_the_library(backend, monkeypatch) -> None:
    """torch's own attention asks torch; these three must be told, and their stand-ins check that they were."""
    module, function = FLASHES[backend]
    install(monkeypatch, module, flash_attn_varlen_func=function)
    q = torch.ones(3, 2, 8)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        varlen_attention(q, q, q, Varlen.from_lengths([3], [3], causal=False), backend=backend)
    finally:
        torch.use_deterministic_algorithms(before)


def test_this_torch_takes_the_keywords_that_were_chosen() -> None:
    """The installed varlen_attn accepts the call, and a stand-in here has its arguments."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn)
    for keywords in attention_backends.TORCH_KEYWORDS.values():
        known.bind(*range(7), **keywords)
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    stand_in = torch_2_10 if version <= (2, 10) else torch_2_11 if version == (2, 11) else torch_2_13
    ours, theirs = inspect.signature(stand_in).parameters, known.parameters
    for name, parameter in ours.items():
        assert (theirs[name].kind, theirs[name].default) == (parameter.kind, parameter.default), name
    assert list(theirs)[:7] == list(ours)[:7]


@CAUSAL
def test_xformers_bias_means_the_contract(causal) -> None:
    pytest.importorskip("xformers", reason="xformers is not installed")
    from reca_fast.kernels.attention.backends import xformers_bias

    lengths = [1, 3, 2], [4, 3, 7]
    allowed = xformers_bias(*lengths, causal).materialize((6, 14)) == 0
    q, k, v, _ = inputs(lengths, (1, 1, 8), torch.float64)
    for row in range(6):  # the values that a row sees, and no others, have a gradient from it
        leaf = v.clone().requires_grad_()
        definition(q, k, leaf, lengths, causal)[row].sum().backward()
        assert leaf.grad is not None and torch.equal(allowed[row], leaf.grad.flatten(1).any(1))
