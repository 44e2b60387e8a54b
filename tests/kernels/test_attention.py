"""Every attention backend computes one thing: softmax(q k^T / sqrt(D)) v inside each segment, causal at the bottom
right.

torch's varlen attention and flash-attn have no CPU kernels. Stand-ins check how they are called and compute what their
documentation promises, so that a wrong keyword or a wrong order of arguments fails here and not on somebody's GPU.
"""

import importlib.util
import inspect
import math
import random
import re
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from reca_fast.kernels import BACKENDS, Varlen, available_backends, choose_backend, varlen_attention
from reca_fast.kernels.attention import backends as attention_backends

pytestmark = pytest.mark.usefixtures("one_thread")

ON_CPU = [
    pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=f"{name}: {reason}"))
    for name, reason in available_backends("cpu", torch.float32).items()
    if name != "torch" and not name.startswith("flash_attn")
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
    """The contract, segment by segment and head by head, in the dtype of its inputs. Rows that see no key are left at
    zero, outside the graph.
    """
    group, out = q.shape[1] // k.shape[1], []
    for qs, ks, vs in zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]), strict=True):
        behind = len(ks) - len(qs)  # the last query sees every key, the one before it all but the last, ...
        sees = torch.tensor([not causal or j <= i + behind for i in range(len(qs)) for j in range(len(ks))]).bool()
        sees = sees.view(len(qs), len(ks))
        some = sees.any(1)
        heads = []
        for h in range(q.shape[1]):
            scores = qs[some, h] @ ks[:, h // group].T / math.sqrt(q.shape[2])
            seen = scores.masked_fill(~sees[some], -math.inf).softmax(-1) @ vs[:, h // group]
            heads.append(torch.zeros_like(qs[:, h]).index_copy(0, some.nonzero()[:, 0], seen))
        out.append(torch.stack(heads, dim=1))
    return torch.cat([q[:0] + k[:0].sum() + v[:0].sum(), *out])


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


# Rows that see no key

BLIND = {
    "no segment": ([], []),
    "no queries": ([0], [3]),
    "no keys": ([3], [0]),
    "no segment with both": ([2, 0], [0, 3]),
    "some without keys": ([2, 3, 1], [0, 2, 0]),
    "some empty": ([0, 2, 0], [2, 3, 0]),
    "fewer keys than queries": ([5, 2, 4], [2, 2, 1]),
}


@CAUSAL
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", BLIND.values(), ids=BLIND)
@pytest.mark.parametrize("backend", ON_CPU)
def test_rows_that_see_no_key(backend, lengths, dtype, causal, within_budget) -> None:
    """Zeros, forward and backward, and everybody else as if such rows, and keys that nobody sees, were not there."""
    tensors = inputs(lengths, (4, 2, 8), dtype)
    segments = Varlen.from_lengths(*lengths, causal=causal)
    got = forward_backward(lambda q, k, v: varlen_attention(q, k, v, segments, backend=backend), tensors)
    wide = [x.double() for x in tensors]
    truth = forward_backward(lambda *qkv: definition(*qkv, lengths, causal), wide)
    baseline = forward_backward(lambda *qkv: definition(*qkv, lengths, causal), tensors)
    unseeing, unseen = ((x == 0).flatten(1).all(1) for x in (truth[0], truth[3]))
    for name, rows, *three in zip(
        ("out", "dq", "dk", "dv"), [unseeing] * 2 + [unseen] * 2, got, truth, baseline, strict=True
    ):
        assert within_budget(*three), name
        assert not three[0][rows].any(), f"{name}: exactly zero"


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_rows_that_see_no_key_compiled(causal) -> None:
    lengths = ([2, 3, 5], [0, 2, 2])
    segments = Varlen.from_lengths(*lengths, causal=causal)
    tensors = inputs(lengths, (4, 2, 8), torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *qkv: varlen_attention(*qkv, segments), fullgraph=True, backend="aot_eager")
    want = forward_backward(lambda *qkv: definition(*qkv, lengths, causal), tensors)
    for ours, theirs in zip(forward_backward(compiled, tensors), want, strict=True):
        torch.testing.assert_close(ours, theirs)


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


def torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    """varlen_attn of torch 2.10; grouped queries as they are."""
    assert return_aux is None
    return documented_attention(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal)


def torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    """varlen_attn of torch 2.11: causal is a window; grouped queries as they are."""
    assert return_aux is scale is None and window_size in ((-1, -1), (-1, 0))
    return documented_attention(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size == (-1, 0))


def torch_2_13(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    """varlen_attn of torch 2.12 and 2.13: grouped queries need their keyword."""
    assert return_aux is scale is seqused_k is block_table is num_splits is None
    assert window_size in ((-1, -1), (-1, 0))
    assert enable_gqa or query.shape[1] == key.shape[1], "grouped queries need enable_gqa=True"
    return documented_attention(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size == (-1, 0))


def flash_2(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
):
    """flash_attn.flash_attn_varlen_func since 2.1: causal is aligned at the bottom right; grouped queries by shape."""
    assert dropout_p == 0.0 and softmax_scale is None and window_size == (-1, -1)
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    return documented_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)


def flash_3(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    seqused_q=None,
    seqused_k=None,
    softmax_scale=None,
    causal=False,
    qv=None,
    deterministic=False,
):
    """flash_attn_interface.flash_attn_varlen_func: other arguments before `causal`."""
    assert seqused_q is seqused_k is softmax_scale is qv is None
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    return documented_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal)


def flash_4(
    q,
    k,
    v,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    max_seqlen_q=None,
    max_seqlen_k=None,
    seqused_q=None,
    seqused_k=None,
    page_table=None,
    softmax_scale=None,
    causal=False,
    deterministic=False,
):
    """flash_attn.cute.flash_attn_varlen_func: returns the log-sum-exp as well."""
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    return documented_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal), None


TORCHES = {"torch 2.10": torch_2_10, "torch 2.11": torch_2_11, "torch 2.13": torch_2_13}
FLASHES = {
    "flash_attn": ("flash_attn", flash_2),
    "flash_attn_3": ("flash_attn_interface", flash_3),
    "flash_attn_4": ("flash_attn.cute", flash_4),
}


def install(monkeypatch: pytest.MonkeyPatch, module: str, **functions: Any) -> None:
    """A module of that name with these functions, and the packages around it with nothing."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        made = types.ModuleType(".".join(parts[:depth]))
        made.__path__ = []
        monkeypatch.setitem(sys.modules, made.__name__, made)
        if depth > 1:
            setattr(sys.modules[".".join(parts[: depth - 1])], parts[depth - 1], made)
    vars(sys.modules[module]).update(functions)


@CAUSAL
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("library", [*TORCHES, *FLASHES])
def test_calling_convention(library, heads, causal, monkeypatch) -> None:
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
        ("flash_attn", (7, 5), torch.float16, "8.0"),
        ("flash_attn", (8, 0), torch.bfloat16, None),
        ("flash_attn_3", (8, 0), torch.bfloat16, r"9\.0 \(Hopper\) or newer"),
        ("flash_attn_3", (9, 0), torch.bfloat16, None),
        ("flash_attn_3", (10, 0), torch.bfloat16, r"9\.0 \(Hopper\), this one has 10\.0"),
        ("flash_attn_4", (8, 0), torch.bfloat16, r"9\.0 \(Hopper\) or newer"),
        ("flash_attn_4", (10, 0), torch.bfloat16, None),
        ("xformers", (7, 5), torch.bfloat16, "8.0 .* for bf16"),
        ("xformers", (7, 5), torch.float16, None),
        ("sdpa", (7, 5), torch.bfloat16, None),
    ],
)
def test_what_gpus_can_run(backend, capability, dtype, reason, monkeypatch) -> None:
    """On a machine with every library, whole ones."""
    for module, function in FLASHES.values():
        install(monkeypatch, module, flash_attn_varlen_func=function)
    install(monkeypatch, "flash_attn.cute", flash_attn_varlen_func=flash_4)
    sys.modules["flash_attn"].flash_attn_varlen_func = flash_2
    install(monkeypatch, "xformers.ops", memory_efficient_attention=documented_attention)
    sys.modules["xformers"]._cpp_lib = types.SimpleNamespace(_cpp_library_load_exception=None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = available_backends("cuda", dtype)
    assert found[backend] is None if reason is None else re.search(reason, found[backend])
    assert found[choose_backend("auto", "cuda", dtype)] is None


def broken(*_: object) -> None:
    raise ImportError("flash_attn_2_cuda.so: undefined symbol: _ZN2at\nmore")


class Broken:
    """Finds every flash_attn, and fails to import it."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name != "flash_attn":
            return None
        loader = types.SimpleNamespace(create_module=lambda spec: None, exec_module=broken)
        return importlib.util.spec_from_loader(name, loader)


def test_a_package_of_the_name_is_not_the_function(monkeypatch) -> None:
    """flash-attn-4 alone brings a package `flash_attn` without FlashAttention-2; a package may not import at all."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    install(monkeypatch, "flash_attn.cute", flash_attn_varlen_func=flash_4)
    found = available_backends("cuda", torch.bfloat16)
    lacks = "flash_attn has no flash_attn_varlen_func; flash-attn is not installed; "
    assert found["flash_attn"] is not None and found["flash_attn"].startswith(lacks)
    assert found["flash_attn_4"] is None
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    reason = "flash_attn cannot be imported: flash_attn_2_cuda.so: undefined symbol: _ZN2at"
    assert available_backends("cuda", torch.bfloat16)["flash_attn"] == reason


@pytest.mark.parametrize(
    ("k_shape", "v_shape"), [((5, 2, 8), (5, 3, 8)), ((5, 3, 8), (5, 3, 8)), ((5, 2, 4), (5, 2, 4))], ids=str
)
def test_shapes_are_checked(k_shape, v_shape) -> None:
    segments = Varlen.from_lengths([5], [5], causal=False)
    with pytest.raises(ValueError, match=r"k, v: expected two \[Tk, Hkv, 8\] with Hkv dividing 4"):
        varlen_attention(torch.zeros(5, 4, 8), torch.zeros(k_shape), torch.zeros(v_shape), segments)


def refused(**changed: Any) -> None:
    q = torch.zeros(5, 4, 8)
    given = {"q": q, "k": q[:, :2], "v": q[:, :2], "segments": Varlen.from_lengths([5], [5], causal=False)} | changed
    varlen_attention(**given)


REFUSED = {
    "q: expected bfloat16, .* got torch.int64": {"q": torch.zeros(5, 4, 8, dtype=torch.int64)},
    "v: expected bfloat16, .* got torch.bool": {"v": torch.zeros(5, 2, 8, dtype=torch.bool)},
    "k: expected the dtype of q, torch.float32, got torch.bfloat16": {"k": torch.zeros(5, 2, 8).bfloat16()},
    "v: expected the dtype of q, torch.float32, got torch.float64": {"v": torch.zeros(5, 2, 8).double()},
    r"q: expected \[Tq, H, D\] .* got \[5, 32\]": {"q": torch.zeros(5, 32)},
    r"k, v: expected two \[Tk, Hkv, 8\] .* got \[5, 8\]": {"k": torch.zeros(5, 8)},
    r"k, v: expected two \[Tk, Hkv, 8\] .* got \[5, 0, 8\]": {"k": torch.zeros(5, 0, 8), "v": torch.zeros(5, 0, 8)},
    "k: expected a tensor on cpu, got meta": {"k": torch.zeros(5, 2, 8, device="meta")},
    "k: expected a tensor, got NoneType": {"k": None},
    "segments: expected a Varlen, got list": {"segments": [0, 5]},
    r"cu_seqlens_k: expected int32 \[segments \+ 1\] on cpu, got torch.int64 \[2\] on cpu": {
        "segments": Varlen(torch.tensor([0, 5], dtype=torch.int32), torch.tensor([0, 5]), 5, 5, False)
    },
    "backend: expected one of .* got 'auto'": {"backend": "auto"},
}


@pytest.mark.parametrize(("message", "changed"), REFUSED.items(), ids=range(len(REFUSED)))
def test_bad_arguments_are_refused_by_name(message, changed) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        refused(**changed)


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


@pytest.mark.parametrize(
    ("segments", "says"),
    [
        (([0, 3], [0, 4], 4, 4, False), "cu_seqlens_q: expected 0 rising to 4"),
        (([0, 4], [0, 5], 4, 5, False), "cu_seqlens_k: expected 0 rising to 4"),
        (([0, 3, 1, 4], [0, 1, 2, 4], 4, 4, True), "cu_seqlens_q: expected 0 rising to 4"),
        (([], [0, 4], 4, 4, True), "cu_seqlens_q: expected 0 rising to 4"),
        (([0, 4], [0, 2, 4], 4, 4, False), "cu_seqlens_k: expected 2 offsets"),
        (([0, 4], [0, 4], 0, 4, False), "max_seqlen_q: expected at least 4"),
        (([0, 4], [0, 1, 4][::2], 4, 3, False), "max_seqlen_k: expected at least 4"),
        (([0, 4], [0, 4], -1, 4, False), "max_seqlen_q: expected the longest length as an int >= 0, got -1"),
        (([0, 4], [0, 4], 4, None, False), "max_seqlen_k: expected the longest length as an int >= 0, got None"),
        (([0, 4], [0, 4], 4, 4, "no"), "causal: expected a bool, got 'no'"),
    ],
)
@pytest.mark.parametrize("backend", ON_CPU)
def test_segments_that_do_not_fit_the_rows(backend, segments, says) -> None:
    q = torch.randn(4, 2, 8)
    offsets = [torch.tensor(x, dtype=torch.int32) for x in segments[:2]]
    with pytest.raises(ValueError, match=f"^{says}"):
        varlen_attention(q, q, q, Varlen(*offsets, *segments[2:]), backend=backend)


@pytest.mark.parametrize(
    ("lengths", "says"),
    [
        ([3, -1], r"expected lengths >= 0, got \[3, -1\]"),
        ([1.5], "expected an integer"),
        (["a"], "expected an integer"),
        ([2**30, 2**30], "expected a sum below"),
    ],
)
def test_lengths_that_are_none(lengths, says) -> None:
    with pytest.raises(ValueError, match=f"^q_lengths: {says}"):
        Varlen.from_lengths(lengths, [1], causal=False)
    with pytest.raises(ValueError, match=f"^k_lengths: {says}"):
        Varlen.from_lengths([1], lengths, causal=False)


@CAUSAL
@pytest.mark.parametrize("heads", [(4, 2, 12), (2, 2, 8)], ids=str)
@pytest.mark.parametrize("backend", ON_CPU)
def test_numbers_of_a_head_that_do_not_lie_side_by_side(backend, heads, causal) -> None:
    """The fused kernels read on from a head's first number, whatever the strides."""
    lengths = ([2, 4], [4, 2])
    tensors = inputs(lengths, heads, torch.float32)
    segments = Varlen.from_lengths(*lengths, causal=causal)
    strided = [x.permute(2, 1, 0).contiguous().permute(2, 1, 0) for x in tensors]
    assert strided[0].stride(2) > 1
    want = forward_backward(lambda *qkv: varlen_attention(*qkv, segments, backend=backend), tensors)
    got = forward_backward(lambda *qkv: varlen_attention(*qkv, segments, backend=backend), strided)
    torch.testing.assert_close(got, want)
