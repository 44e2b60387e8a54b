"""OpenUni's recorded cases: every number is the authors'."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reca_fast.models.openuni import OpenUniModel
from reca_fast.verify.compare import compare
from tests.places import OPENUNI

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = sorted(OPENUNI.iterdir())
MORE = os.environ.get("RECA_FAST_PARITY_CASES")
if MORE:
    CASES += [p.parent for p in sorted(Path(MORE).glob("*/config.json")) if "num_queries" in json.loads(p.read_text())]


@pytest.fixture(params=CASES, ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_every_recorded_tensor_is_computed_again(folder, dtype, attention) -> None:
    case = OpenUniModel.case(folder)
    got = dict(case.replay(attention=attention, dtype=dtype, weights=None))
    verdicts = compare(case.expected(), got, lambda name: case.tolerance(name, dtype))
    assert len(verdicts) > 28 and [str(verdict) for verdict in verdicts if not verdict.agrees] == []


def test_everything_is_computed_where_only_inputs_were_recorded(folder, reca_fast, tmp_path) -> None:
    case, out = tmp_path / "case", tmp_path / "out.safetensors"
    shutil.copytree(folder, case, ignore=shutil.ignore_patterns("expected*"))
    assert reca_fast("verify", case, "--out", out).code == 0
    written = {name: x.shape for name, x in load_file(out).items()}
    wanted = {name: x.shape for name, x in load_file(folder / "expected.safetensors").items()}
    assert {name: written.get(name) for name in wanted} == wanted
    assert {"scalar/loss", "scalar/grad_norm"} <= written.keys()


def test_a_wrong_weight_is_seen(folder, reca_fast, tmp_path) -> None:
    weights = load_file(folder / "weights.safetensors")
    weights["connector.layers.0.mlp.fc1.bias"] += 0.01
    save_file(weights, tmp_path / "weights.safetensors")
    said = reca_fast("verify", folder, "--weights", tmp_path / "weights.safetensors")
    assert said.code == 1 and "FAIL  connector_output" in said.out and "ok    llm_query_hidden" in said.out


def test_weights_that_are_not_finite_are_one_sentence(folder, reca_fast, tmp_path) -> None:
    weights = load_file(folder / "weights.safetensors")
    weights["connector.layers.0.mlp.fc1.bias"][3] = float("nan")
    save_file(weights, tmp_path / "weights.safetensors")
    said = reca_fast("verify", folder, "--weights", tmp_path / "weights.safetensors", "--out", tmp_path / "out")
    assert "gives NaN or infinite numbers, first in connector_output" in said.sentence
    assert not (tmp_path / "out").exists()


def test_a_broken_case_is_one_sentence(folder, reca_fast, tmp_path) -> None:
    case = Path(shutil.copytree(folder, tmp_path / "case"))
    inputs = load_file(case / "inputs.safetensors")
    save_file({name: x for name, x in inputs.items() if name != "noise"}, case / "inputs.safetensors")
    assert reca_fast("verify", case).sentence.endswith("lacks noise.\n")
    save_file({**inputs, "noise": inputs["noise"][:1]}, case / "inputs.safetensors")
    assert "of different numbers of samples" in reca_fast("verify", case).sentence
    save_file({**inputs, "sigmas": inputs["sigmas"] / 2}, case / "inputs.safetensors")
    assert "sigmas are not timesteps divided by 1000" in reca_fast("verify", case).sentence
    config = json.loads((case / "config.json").read_text())
    (case / "config.json").write_text(json.dumps({**config, "task": "image2text"}))
    assert "states no task" in reca_fast("verify", case).sentence
