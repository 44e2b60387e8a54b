"""Which attention backend is chosen, and the sentence that says why another one cannot run."""

import importlib.util
import re
import sys
import types
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from reca_fast.kernels import BACKENDS, Varlen, assume_gpu, available_backends, choose_backend, varlen_attention
from tests.oracles.attention_libraries import FLASHES, documented_attention, flash_2, flash_4, install

pytestmark = pytest.mark.usefixtures("one_thread")


def test_auto_is_sdpa_on_a_cpu() -> None:
    assert choose_backend("auto", "cpu", torch.float32) == "sdpa"
    assert list(available_backends("cpu", torch.bfloat16)) == list(BACKENDS)


def test_where_a_gpu_is_assumed_auto_is_what_a_gpu_runs() -> None:
    """On fake tensors its result has a shape, and its backward pass gives gradients."""
    with assume_gpu(), FakeTensorMode():
        assert choose_backend("auto", "cpu", torch.float32) == "sdpa"
        backend = choose_backend("auto", "cpu", torch.bfloat16)
        q, k = (torch.empty(9, heads, 8, dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2))
        out = varlen_attention(q, k, k, Varlen.from_lengths([4, 5], [4, 5], causal=True), backend=backend)
        out.sum().backward()
        assert backend == "torch" and out.shape == q.shape and k.grad.shape == k.shape


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
    vars(sys.modules["flash_attn"]).update(flash_attn_varlen_func=flash_2)
    install(monkeypatch, "xformers.ops", memory_efficient_attention=documented_attention)
    vars(sys.modules["xformers"]).update(_cpp_lib=types.SimpleNamespace(_cpp_library_load_exception=None))
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
