"""Every attention backend computes one thing: softmax(q k^T / sqrt(D)) v inside each segment, causal at the bottom
right.

torch's varlen attention and flash-attn have no CPU kernels. Stand-ins check how they are called and compute what their
documentation promises, so that a wrong keyword or a wrong order of arguments fails here and not on somebody's GPU.
"""

import inspect
import math
import random
import re
import sys
import types

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from reca_fast.kernels import BACKENDS, Varlen, available_backends, choose_backend, varlen_attention

pytestmark = pytest.mark.usefixtures("one_thread")

ON_CPU = [
    pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=f"{name}: {reason}"))
    for name, reason in available_backends("cpu", torch.float32).items()
    if name not in ("torch", "flash_attn")
]
HEADS = [(2, 2, 8), (4, 2, 12), (4, 1, 8), (7, 1, 72)]  # query heads, key heads, head dim: group sizes 1, 2, 4, 7
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])


def ragged(seed: int) -> tuple[list[int], list[int]]:
    """Query and key lengths: a lone query, as many keys as queries, more keys than queries."""
    draw = random.Random(seed)
    q = [1, 5, draw.randint(2, 9), draw.randint(2, 9)]
    return q, [4, 5, q[2] + draw.randint(1, 9), q[3] + draw.randint(1, 40)]


def inputs(lengths: tuple[list[int], list[int]], heads: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and a gradient of the output."""
    draw = torch.Generator().manual_seed(0)
    (queries, keys), (h, hkv, d) = map(sum, lengths), heads
    shapes = [(queries, h, d), (keys, hkv, d), (keys, hkv, d), (queries, h, d)]
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes]


def definition(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[list[int], list[int]], causal: bool) -> Tensor:
    """The contract, segment by segment and head by head, in the dtype of its inputs."""
    group, out = q.shape[1] // k.shape[1], []
    for qs, ks, vs in zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]), strict=True):
        behind = len(ks) - len(qs)  # the last query sees every key, the one before it all but the last, ...
        sees = torch.tensor([not causal or j <= i + behind for i in range(len(qs)) for j in range(len(ks))]).bool()
        heads = []
        for h in range(q.shape[1]):
            scores = qs[:, h] @ ks[:, h // group].T / math.sqrt(q.shape[2])
            heads.append(scores.masked_fill(~sees.view_as(scores), -math.inf).softmax(-1) @ vs[:, h // group])
        out.append(torch.stack(heads, dim=1))
    return torch.cat(out)


def forward_backward(attend, tensors: list[Tensor]) -> list[Tensor]:
    """[output, dq, dk, dv] of attend(q, k, v)."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors[:3]]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, tensors[3])]


@CAUSAL
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("backend", ON_CPU)
def test_backends_agree_with_the_definition(backend, heads, dtype, causal, within_budget) -> None:
    lengths = ragged(seed=sum(heads))
    tensors = inputs(lengths, heads, dtype)
    segments = Varlen.from_lengths(*lengths, causal=causal)
    got = forward_backward(lambda q, k, v: varlen_attention(q, k, v, segments, backend=backend), tensors)
    truth = forward_backward(lambda *qkv: definition(*qkv, lengths, causal), [x.double() for x in tensors])
    baseline = forward_backward(lambda *qkv: definition(*qkv, lengths, causal), tensors)
    for name, *three in zip(("out", "dq", "dk", "dv"), got, truth, baseline, strict=True):
        assert within_budget(*three), name


@pytest.mark.parametrize("mutant", ["top left", "one segment", "wrong key head"])
def test_the_comparison_sees_a_wrong_rule(mutant, within_budget) -> None:
    """Causal at the top left, segments that see each other, query head h on key head h % Hkv: all far outside the
    budget.
    """
    lengths = ragged(seed=1)
    q, k, v, _ = tensors = inputs(lengths, (4, 2, 12), torch.bfloat16)
    truth = definition(*(x.double() for x in tensors[:3]), lengths, True)
    if mutant == "top left":
        parts = zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]), strict=True)
        wrong = torch.cat([definition(a, b[: len(a)], c[: len(a)], ([len(a)], [len(a)]), True) for a, b, c in parts])
    elif mutant == "one segment":
        wrong = definition(q, k, v, ([len(q)], [len(k)]), True)
    else:
        wrong = definition(q, k.flip(1), v.flip(1), lengths, True)
    assert within_budget(definition(q, k, v, lengths, True), truth, definition(q, k, v, lengths, True))
    assert not within_budget(wrong, truth, definition(q, k, v, lengths, True))


@CAUSAL
@pytest.mark.parametrize(
    "lengths", [([], []), ([0], [3]), ([0, 2, 0], [2, 3, 0])], ids=["none", "no queries", "some empty"]
)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_empty_segments(backend, lengths, causal) -> None:
    """A segment without queries gives its keys a zero gradient; no segment at all is an empty answer."""
    tensors = inputs(lengths, (4, 2, 8), torch.float64)
    segments = Varlen.from_lengths(*lengths, causal=causal)
    got = forward_backward(lambda q, k, v: varlen_attention(q, k, v, segments, backend=backend), tensors)
    assert [x.shape for x in got] == [x.shape for x in (tensors[0], *tensors[:3])]
    if sum(lengths[0]):
        want = forward_backward(lambda *qkv: definition(*qkv, lengths, causal), tensors)
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours, theirs)
    else:
        assert not any(x.any() for x in got)


# Libraries without a CPU kernel: stand-ins that check the call


def documented_attention(q, k, v, cu_q, cu_k, max_q, max_k, causal):
    """What both libraries document for these arguments, after a check of everything their kernels insist on."""
    assert q.dtype == k.dtype == v.dtype
    assert all(x.dim() == 3 and x.is_contiguous() for x in (q, k, v)), "[total tokens, heads, head dim]"
    assert q.shape[1] % k.shape[1] == 0 and k.shape == v.shape
    assert cu_q.dtype == cu_k.dtype == torch.int32 and cu_q.shape == cu_k.shape
    assert cu_q[0] == cu_k[0] == 0 and cu_q[-1] == len(q) and cu_k[-1] == len(k)
    assert (type(max_q), type(max_k)) == (int, int), "device tensors would synchronise"
    assert (max_q, max_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
    return definition(q, k, v, (cu_q.diff().tolist(), cu_k.diff().tolist()), causal)


def torch_stand_in(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):
    """torch.nn.attention.varlen.varlen_attn: causal is window_size=(-1, 0); fewer key heads need enable_gqa."""
    assert tuple(window_size) in ((-1, -1), (-1, 0))
    assert enable_gqa or q.shape[1] == k.shape[1], "grouped queries need enable_gqa=True"
    return documented_attention(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, tuple(window_size) == (-1, 0))


def flash_stand_in(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, causal=False):
    """flash_attn.flash_attn_varlen_func since 2.1: causal is aligned at the bottom right; grouped queries by shape."""
    assert dropout_p == 0.0
    return documented_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)


@CAUSAL
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("backend", ["torch", "flash_attn"])
def test_calling_convention(backend, heads, causal, monkeypatch) -> None:
    if backend == "torch":
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", torch_stand_in)
    else:
        monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_varlen_func=flash_stand_in))
    lengths = ragged(seed=2)
    q, k, v, _ = inputs(lengths, heads, torch.float64)
    segments = Varlen.from_lengths(*lengths, causal=causal)
    got = varlen_attention(q, k, v, segments, backend=backend)
    torch.testing.assert_close(got, varlen_attention(q, k, v, segments, backend="eager"))


def test_the_torch_stand_in_has_the_signature_of_the_original() -> None:
    """Names, order and defaults of the arguments that are passed, so that the stand-in cannot drift away."""
    from torch.nn.attention.varlen import varlen_attn

    original = inspect.signature(varlen_attn).parameters
    ours = inspect.signature(torch_stand_in).parameters
    renamed = {"q": "query", "k": "key", "v": "value"}
    for position, (name, parameter) in enumerate(ours.items()):
        theirs = original[renamed.get(name, name)]
        assert (theirs.kind, theirs.default) == (parameter.kind, parameter.default), name
        assert parameter.kind is parameter.KEYWORD_ONLY or list(original)[position] == theirs.name


@CAUSAL
def test_xformers_bias_means_the_contract(causal) -> None:
    pytest.importorskip("xformers", reason="xformers is not installed")
    from reca_fast.kernels.attention_backends import xformers_bias

    lengths = [1, 3, 2], [4, 3, 7]
    allowed = xformers_bias(*lengths, causal).materialize((6, 14)) == 0
    q, k, v, _ = inputs(lengths, (1, 1, 8), torch.float64)
    for row in range(6):  # the values that a row sees, and no others, have a gradient from it
        leaf = v.clone().requires_grad_()
        definition(q, k, leaf, lengths, causal)[row].sum().backward()
        assert torch.equal(allowed[row], leaf.grad.flatten(1).any(1))


# Choosing


def test_auto_is_sdpa_on_a_cpu() -> None:
    assert choose_backend("auto", "cpu", torch.float32) == "sdpa"
    assert list(available_backends("cpu", torch.bfloat16)) == list(BACKENDS)


def test_an_impossible_choice_says_why() -> None:
    with pytest.raises(ValueError, match=r"attention='torch' cannot run on cpu in .*: needs an NVIDIA GPU"):
        choose_backend("torch", "cpu", torch.bfloat16)
    with pytest.raises(ValueError, match="attention='flash_attn' cannot run on cpu"):
        choose_backend("flash_attn", "cpu", torch.bfloat16)
    with pytest.raises(ValueError, match=r"attention='flsh': expected one of \['auto', 'torch', "):
        choose_backend("flsh", "cpu", torch.bfloat16)


@pytest.mark.parametrize(
    ("backend", "capability", "dtype", "reason"),
    [
        ("torch", (7, 5), torch.float16, "8.0"),
        ("torch", (8, 0), torch.float32, "fp16 or bf16, not torch.float32"),
        ("torch", (9, 0), torch.bfloat16, None),
        ("xformers", (7, 5), torch.bfloat16, "8.0 .* for bf16"),
        ("xformers", (7, 5), torch.float16, None),
        ("sdpa", (7, 5), torch.bfloat16, None),
    ],
)
def test_what_gpus_can_run(backend, capability, dtype, reason, monkeypatch) -> None:
    """On a machine with every library, whole ones."""
    whole = types.SimpleNamespace(_cpp_lib=types.SimpleNamespace(_cpp_library_load_exception=None))
    monkeypatch.setitem(sys.modules, "xformers", whole)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: whole)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = available_backends("cuda", dtype)
    assert found[backend] is None if reason is None else re.search(reason, found[backend])
    assert found[choose_backend("auto", "cuda", dtype)] is None


@pytest.mark.parametrize(
    ("k_shape", "v_shape"), [((5, 2, 8), (5, 3, 8)), ((5, 3, 8), (5, 3, 8)), ((5, 2, 4), (5, 2, 4))], ids=str
)
def test_shapes_are_checked(k_shape, v_shape) -> None:
    segments = Varlen.from_lengths([5], [5], causal=False)
    with pytest.raises(ValueError, match=r"k, v: expected two \[Tk, Hkv, 8\] with Hkv dividing 4"):
        varlen_attention(torch.zeros(5, 4, 8), torch.zeros(k_shape), torch.zeros(v_shape), segments)


# Compiling


@CAUSAL
def test_custom_op_obeys_torch_library(causal) -> None:
    lengths = ragged(seed=3)
    q, k, v, _ = (x.requires_grad_() for x in inputs(lengths, (4, 2, 8), torch.float32))
    segments = Varlen.from_lengths(*lengths, causal=causal)
    arguments = (q, k, v, segments.cu_seqlens_q, segments.cu_seqlens_k, causal)
    torch.library.opcheck(torch.ops.reca_fast.varlen_attention_cpu.default, arguments)


def test_compiles_whole_and_never_again_for_new_lengths() -> None:
    def block(q, k, v, segments):
        return varlen_attention(q * 2, k, v, segments, backend="sdpa").sin()

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=counter)
    for seed in range(4):
        lengths = ragged(seed)
        segments = Varlen.from_lengths(*lengths, causal=True)
        tensors = inputs(lengths, (4, 2, 8), torch.float64)
        got = forward_backward(lambda *qkv: compiled(*qkv, segments), tensors)  # noqa: B023
        want = forward_backward(lambda *qkv: block(*qkv, segments), tensors)  # noqa: B023
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert counter.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_fake_tensors_have_the_real_shapes(backend, dtype) -> None:
    with FakeTensorMode():
        q, k = torch.empty(6, 4, 8, dtype=dtype), torch.empty(9, 2, 8, dtype=dtype)
        offsets = torch.empty(3, dtype=torch.int32)
        out = varlen_attention(q, k, k, Varlen(offsets, offsets, 3, 5, False), backend=backend)
    assert (out.shape, out.dtype) == (q.shape, dtype)


@pytest.mark.parametrize(("q_lengths", "k_lengths", "named"), [([3], [4], "cu_seqlens_q"), ([4], [5], "cu_seqlens_k")])
def test_offsets_that_do_not_fit_the_rows(q_lengths: list[int], k_lengths: list[int], named: str) -> None:
    q, k = torch.randn(4, 2, 8), torch.randn(4, 2, 8)
    with pytest.raises(ValueError, match=f"^{named}: expected 0 rising to 4"):
        varlen_attention(q, k, k, Varlen.from_lengths(q_lengths, k_lengths, causal=False), backend="sdpa")


def test_as_many_key_segments_as_query_segments() -> None:
    q = torch.randn(4, 2, 8)
    with pytest.raises(ValueError, match=r"^cu_seqlens_k: expected 2 offsets"):
        varlen_attention(q, q, q, Varlen.from_lengths([4], [2, 2], causal=False), backend="sdpa")
