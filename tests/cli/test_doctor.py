"""`reca-fast doctor` says what this machine can run, and why not the rest."""

import re

import pytest
import torch

pytestmark = pytest.mark.usefixtures("one_thread")


def test_doctor_says_what_runs_and_what_does_not(reca_fast) -> None:
    said = reca_fast("doctor")
    assert said.code == 0
    assert f"torch {torch.__version__}" in said.out and "attention on " in said.out
    for backend in ("torch", "flash_attn_3", "flash_attn_4", "flash_attn", "xformers", "sdpa", "eager"):
        assert re.search(rf"│ {backend} +│ (active|available|-) +│", said.out)
    assert len(re.findall("active", said.out)) == 2  # one per dtype
    for name in ("qk_norm_rope", "template_concat", "flow_matching_loss", "rms_norm", "swiglu"):
        assert re.search(rf"│ {name} +│ (triton|liger|reference) +│ \S+", said.out)


def test_doctor_says_why_the_kernels_asked_for_cannot_run(reca_fast, monkeypatch) -> None:
    monkeypatch.setenv("RECA_FAST_KERNELS", "turbo")
    assert "RECA_FAST_KERNELS='turbo': expected one of auto, triton, reference" in reca_fast("doctor").sentence
    monkeypatch.setenv("RECA_FAST_KERNELS", "reference")
    assert re.search(r"│ qk_norm_rope +│ reference +│ kernels=reference", reca_fast("doctor").out)
