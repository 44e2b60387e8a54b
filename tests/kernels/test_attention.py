"""Every attention backend computes one thing: softmax(q k^T / sqrt(D)) v inside each segment, causal at the bottom
right.
"""

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from reca_fast.kernels import Varlen, available_backends, varlen_attention
from tests.oracles.attention import definition, forward_backward, inputs, ragged

pytestmark = pytest.mark.usefixtures("one_thread")

ON_CPU = [
    pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=f"{name}: {reason}"))
    for name, reason in available_backends("cpu", torch.float32).items()
    if name != "torch" and not name.startswith("flash_attn")
]

HEADS = [(2, 2, 8), (4, 2, 12), (4, 1, 8), (7, 1, 72)]  # query heads, key heads, head dim: group sizes 1, 2, 4, 7

CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])


@CAUSAL
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("backend", ON_CPU)
def test_backends_agree_with_the_definition(backend, heads, dtype, causal, within_budget) -> None:
    lengths = ragged(seed=sum(heads))
    tensors = inputs(lengths, heads, dtype)
    segments = Varlen.from_lengths(*lengths, causal=causal)
    got = forward_backward(lambda q, k, v: varlen_attention(q, k, v, segments, backend=backend), tensors)
    truth = forward_backward(lambda q, k, v: definition(q, k, v, lengths, causal), [x.double() for x in tensors])
    baseline = forward_backward(lambda q, k, v: definition(q, k, v, lengths, causal), tensors)
    for name, *three in zip(("out", "dq", "dk", "dv"), got, truth, baseline, strict=True):
        assert within_budget(*three), name


@pytest.mark.parametrize("mutant", ["top left", "one segment", "wrong key head"])
def test_the_comparison_sees_a_wrong_rule(mutant, within_budget) -> None:
    """Causal at the top left, segments that see each other, query head h on key head h % Hkv: all far outside the
    budget.
    """
    lengths = ragged(seed=1)
    q, k, v, _ = inputs(lengths, (4, 2, 12), torch.bfloat16)
    truth = definition(q.double(), k.double(), v.double(), lengths, True)
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
    truth = forward_backward(lambda q, k, v: definition(q, k, v, lengths, causal), wide)
    baseline = forward_backward(lambda q, k, v: definition(q, k, v, lengths, causal), tensors)
    unseeing, unseen = ((x == 0).flatten(1).all(1) for x in (truth[0], truth[3]))
    for name, rows, *three in zip(
        ("out", "dq", "dk", "dv"), [unseeing] * 2 + [unseen] * 2, got, truth, baseline, strict=True
    ):
        assert within_budget(*three), name
        assert not three[0][rows].any(), f"{name}: exactly zero"


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_rows_that_see_no_key_compiled(causal) -> None:
    lengths = ([2, 3, 5], [0, 2, 2])
    segments = Varlen.from_lengths(*lengths, causal=causal)
    tensors = inputs(lengths, (4, 2, 8), torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k, v: varlen_attention(q, k, v, segments), fullgraph=True, backend="aot_eager")
    want = forward_backward(lambda q, k, v: definition(q, k, v, lengths, causal), tensors)
    for ours, theirs in zip(forward_backward(compiled, tensors), want, strict=True):
        torch.testing.assert_close(ours, theirs)


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


@pytest.mark.slow
@CAUSAL
def test_custom_op_obeys_torch_library(causal) -> None:
    lengths = ragged(seed=3)
    q, k, v, _ = (x.requires_grad_() for x in inputs(lengths, (4, 2, 8), torch.float32))
    segments = Varlen.from_lengths(*lengths, causal=causal)
    arguments = (q, k, v, segments.cu_seqlens_q, segments.cu_seqlens_k, causal)
    torch.library.opcheck(torch.ops.reca_fast.varlen_attention_cpu.default, arguments)


@pytest.mark.slow
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
        got = forward_backward(lambda q, k, v: compiled(q, k, v, segments), tensors)  # noqa: B023
        want = forward_backward(lambda q, k, v: block(q, k, v, segments), tensors)  # noqa: B023
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


@pytest.mark.parametrize(("queries", "keys", "causal"), [(16, 6, False), (9, 9, True), (4, 13, True)])
def test_segments_of_one_size_are_computed_at_once_to_the_last_bit(queries, keys, causal):
    """On a CPU, so that what comes of a sample does not depend on its neighbours in a pack."""
    draw = torch.Generator().manual_seed(0)
    sizes = [(queries, 4), (keys, 2), (keys, 2), (queries, 4)]
    q, k, v, grad = (torch.randn(5, rows, heads, 8, generator=draw) for rows, heads in sizes)

    def results(chosen: slice) -> list[torch.Tensor]:
        inputs = [x[chosen].flatten(0, 1).requires_grad_() for x in (q, k, v)]
        number = len(q[chosen])
        segments = Varlen.from_lengths([queries] * number, [keys] * number, causal=causal)
        out = varlen_attention(*inputs, segments, backend="sdpa")
        out.backward(grad[chosen].flatten(0, 1))
        return [out.detach(), *(x.grad for x in inputs)]

    singly = zip(*(results(slice(i, i + 1)) for i in range(5)), strict=True)
    for together, parts in zip(results(slice(0, 5)), singly, strict=True):
        assert torch.equal(together, torch.cat(parts))
