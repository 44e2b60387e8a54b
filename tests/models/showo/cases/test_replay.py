"""Show-o's recorded cases: every number is the authors', and so is who sees whom."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reca_fast.errors import UserError
from reca_fast.kernels import Varlen
from reca_fast.models.showo import ShowoModel
from reca_fast.models.showo.batch import ShowoBatch, make_batch
from reca_fast.models.showo.cases import RecordedCase
from reca_fast.models.showo.cases.recorded_rows import spans_of
from reca_fast.models.showo.network import Showo
from reca_fast.verify.compare import compare
from tests.places import SHOWO

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = sorted(SHOWO.iterdir())
MORE = os.environ.get("RECA_FAST_PARITY_CASES")
if MORE:
    CASES += [p.parent for p in sorted(Path(MORE).glob("*/config.json")) if "w_clip_vit" in json.loads(p.read_text())]


@pytest.fixture(params=CASES, ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


def failed(folder: Path, dtype: torch.dtype = torch.float32) -> list[str]:
    """What disagrees in a replay, one line for each tensor."""
    case = ShowoModel.case(folder)
    got = dict(case.replay(attention="auto", dtype=dtype, weights=None))
    return [str(v) for v in compare(case.expected(), got, lambda name: case.tolerance(name, dtype)) if not v.agrees]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_recorded_tensor_is_computed_again(folder, dtype) -> None:
    assert failed(folder, dtype) == []


def dense(plan: tuple[Varlen | None, Tensor | None], first: int, rows: int) -> Tensor:
    """bool [rows, rows]: the keys that the queries from `first` on see in one attention call."""
    segments, keys = plan
    seen = torch.zeros(rows, rows, dtype=torch.bool)
    if segments is None:
        return seen
    cu_q, cu_k = segments.cu_seqlens_q.tolist(), segments.cu_seqlens_k.tolist()
    for q0, q1, k0, k1 in zip(cu_q, cu_q[1:], cu_k, cu_k[1:], strict=False):
        for i in range(q0, q1):
            stop = k1 - (q1 - 1 - i) if segments.causal else k1
            seen[first + i, keys[k0:stop]] = True
    return seen


def who_sees_whom(batch: ShowoBatch) -> Tensor:
    plan = batch.plan
    full = dense((plan.full, plan.full_keys), 0, batch.num_tokens)
    return full | dense((plan.causal, plan.causal_keys), plan.num_full, batch.num_tokens)


@pytest.mark.parametrize("kind", ["t2i", "lm", "mmu", "recon"])
def test_rows_see_what_the_recorded_masks_allow(folder, kind) -> None:
    case = RecordedCase.open(folder)
    for number, ids in enumerate(case.rows(kind)):
        labels = case.inputs[f"{kind}_labels"][number]
        batch = make_batch([spans_of(kind, ids, labels, case.config, case.config.num_vq_tokens)])
        allow, kept = case.inputs[f"{kind}_allow"][number].bool(), batch.positions
        assert torch.equal(who_sees_whom(batch), allow[kept][:, kept])
        left_out = torch.ones(len(ids), dtype=torch.bool)
        left_out[kept] = False
        assert left_out.any() and not allow[kept][:, left_out].any()
        assert (ids[left_out] < case.config.first_code).all()  # padding, and marks that nothing sees


def test_a_gradient_that_does_not_stop_before_a_reconstruction_is_seen(monkeypatch) -> None:
    never = property(lambda self: False, lambda self, value: None)
    monkeypatch.setattr(Showo, "stops_gradient", never, raising=False)
    lines = failed(SHOWO / "recorded_clip")
    assert lines and all("grad" in line for line in lines)


def test_positions_that_do_not_count_padding_are_seen(monkeypatch) -> None:
    plain = Showo.decode

    def without_padding(self, rows, batch):
        object.__setattr__(batch, "positions", batch.positions.argsort().argsort())
        return plain(self, rows, batch)

    monkeypatch.setattr(Showo, "decode", without_padding)
    assert any("recon_logits" in line for line in failed(SHOWO / "recorded_clip"))


def test_a_case_with_weights_of_another_is_one_sentence() -> None:
    case = ShowoModel.case(SHOWO / "recorded_clip")
    with pytest.raises(UserError, match="mm_projector"):
        list(case.replay(attention="auto", dtype=torch.float32, weights=SHOWO / "recorded_codes/weights.safetensors"))


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("recon_mask_u", lambda x: None, "lacks recon_mask_u, of shape [2]"),
        ("mmu_input_ids", lambda x: None, "lacks mmu_input_ids"),
        ("lm_input_ids", lambda x: x.flatten(), "its shape must be [any, any]"),
        ("mmu_labels", lambda x: x[:, 1:], "mmu_labels is"),
        ("t2i_input_ids", lambda x: x + 100, "ids beyond the vocabulary"),
        ("pixels_recon", lambda x: x / 0, "holds NaN or infinite numbers"),
    ],
)
def test_a_broken_case_is_one_sentence(name, change, sentence, tmp_path) -> None:
    copy = Path(shutil.copytree(SHOWO / "recorded_clip", tmp_path / "case"))
    inputs = load_file(copy / "inputs.safetensors")
    changed = change(inputs.pop(name))
    save_file(inputs if changed is None else inputs | {name: changed.contiguous()}, copy / "inputs.safetensors")
    with pytest.raises(UserError) as refused:
        ShowoModel.case(copy)
    assert sentence in str(refused.value)


def test_special_tokens_of_another_vocabulary_are_one_sentence(tmp_path) -> None:
    copy = Path(shutil.copytree(SHOWO / "recorded_clip", tmp_path / "case"))
    raw = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(raw | {"token_ids": raw["token_ids"] | {"eoi": 7}}))
    with pytest.raises(UserError, match="token_ids are not those of a vocabulary of 60 tokens of text"):
        ShowoModel.case(copy)


def test_gradients_of_every_parameter_are_given() -> None:
    """More than the recorded ones: whoever compares others finds them."""
    case = ShowoModel.case(SHOWO / "recorded_clip")
    got = dict(case.replay(attention="auto", dtype=torch.float32, weights=None))
    keys = [key for key in load_file(SHOWO / "recorded_clip/weights.safetensors") if not key.startswith("vision_tower")]
    assert all(f"grad.reca.{key}" in got for key in keys)


@pytest.mark.parametrize(
    ("folder", "name", "change", "sentence"),
    [
        ("recorded_clip", "codes_recon", lambda x: None, "lacks codes_recon, or a tokenizer"),
        ("recorded_codes", "mmu_input_ids", lambda x: x * 0, "A row of mmu_input_ids lacks the token 58"),
    ],
)
def test_rows_without_their_pictures_are_one_sentence(folder, name, change, sentence, tmp_path) -> None:
    copy = Path(shutil.copytree(SHOWO / folder, tmp_path / "case"))
    inputs = load_file(copy / "inputs.safetensors")
    changed = change(inputs.pop(name))
    save_file(inputs if changed is None else inputs | {name: changed}, copy / "inputs.safetensors")
    with pytest.raises(UserError, match=sentence):
        list(ShowoModel.case(copy).replay(attention="auto", dtype=torch.float32, weights=None))
