"""`reca-fast verify`: our numbers are the authors' numbers, a wrong number is seen, a broken case is one sentence."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reca_fast.kernels import available_backends
from reca_fast.models.bagel.layers import MoTLayer
from tests.places import BAGEL

pytestmark = pytest.mark.usefixtures("one_thread")

BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=f"{name}: {reason}"))
    for name, reason in available_backends("cpu", torch.float32).items()
    if name != "torch" and not name.startswith("flash_attn")
]
SCALARS = ("loss", "mse", "ce", "grad_norm", "grad_norm_all")  # last word of a path in expected*.json


@pytest.fixture
def copy(written_case: Path, tmp_path: Path) -> Path:
    """A case of one's own, to be broken."""
    return Path(shutil.copytree(written_case, tmp_path / "case"))


def expected_shapes(case: Path) -> dict[str, list[int]]:
    """Everything that the expected files hold, under the names that `verify --out` promises."""
    shapes: dict[str, list[int]] = {}
    for stem, prefix in (("expected", ""), ("expected_joint", "joint/")):
        if (case / f"{stem}.safetensors").exists():
            shapes |= {prefix + name: list(x.shape) for name, x in load_file(case / f"{stem}.safetensors").items()}
            numbers = json.loads((case / f"{stem}.json").read_text())
            shapes |= {f"{prefix}scalar/{path}": [] for path in SCALARS if isinstance(numbers.get(path), float)}
    return shapes


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize("attention", BACKENDS)
def test_agrees_with_the_authors(case_folder, attention, dtype, reca_fast) -> None:
    said = reca_fast("verify", case_folder, "--attention", attention, "--dtype", dtype)
    assert said.code == 0, said.out
    assert "FAIL" not in said.out
    assert said.out.rstrip().endswith(f"attention={attention}, {dtype}: all agree.")
    for name in expected_shapes(case_folder):  # one line per tensor
        assert f"ok    {name}  [" in said.out


def test_bf16_stays_within_its_rounding(written_case, reca_fast) -> None:
    assert reca_fast("verify", written_case, "--dtype", "bf16").code == 0


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own(written_case) -> None:
    command = [sys.executable, "-m", "reca_fast", "verify", str(written_case)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "all agree" in done.stdout


def test_out_without_expected_files(case_folder, reca_fast, tmp_path) -> None:
    """A case that holds only its inputs: everything is computed and written, under the authors' names."""
    case = tmp_path / "case"
    shutil.copytree(case_folder, case, ignore=shutil.ignore_patterns("expected*"))
    said = reca_fast("verify", case, "--out", tmp_path / "new" / "out.safetensors")
    assert said.code == 0, said
    written = {name: list(x.shape) for name, x in load_file(tmp_path / "new" / "out.safetensors").items()}
    wanted = expected_shapes(case_folder)
    assert {
        "scalar/loss",
        "scalar/mse",
        "scalar/grad_norm_all",
        "mse_per_token",
        "grad.llm2vae.weight",
    } <= wanted.keys()
    assert {name: written.get(name) for name in wanted} == wanted
    assert ("joint/scalar/ce" in written) == ("joint/scalar/ce" in wanted)


def test_out_of_recorded_pictures(reca_fast, tmp_path) -> None:
    """The case with raw pixels also checks both resizes to the bit, the VAE's moments and the sampled latents."""
    case = BAGEL / "recorded_pixels"
    said = reca_fast("verify", case, "--out", tmp_path / "out.safetensors")
    assert said.code == 0
    recorded, got = load_file(case / "inputs.safetensors"), load_file(tmp_path / "out.safetensors")
    for name in ("image.0.vae_tensor", "image.0.vit_tensor", "packed_vit_tokens"):
        assert torch.equal(got[name], recorded[name])
    torch.testing.assert_close(got["padded_latent"], recorded["padded_latent"], rtol=0, atol=1e-5)


# A wrong number is seen


@pytest.mark.parametrize("name", ["velocity_pred", "x_t", "grad.llm2vae.weight", "joint/ce_per_token"])
def test_a_corrupted_expectation_fails(copy, name, reca_fast) -> None:
    file = copy / ("expected_joint.safetensors" if name.startswith("joint/") else "expected.safetensors")
    tensors, key = load_file(file), name.removeprefix("joint/")
    tensors[key].view(-1)[0] += 1e-3 * tensors[key].abs().max()
    save_file(tensors, file)
    said = reca_fast("verify", copy)
    assert said.code == 1
    failed = [line for line in said.out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1 and failed[0].startswith(f"FAIL  {name}  [")
    assert said.out.rstrip().endswith(f"1 DISAGREE, first {name}.")


def test_a_corrupted_scalar_fails(copy, reca_fast) -> None:
    numbers = json.loads((copy / "expected.json").read_text())
    (copy / "expected.json").write_text(json.dumps(numbers | {"loss": numbers["loss"] * 1.00001}))
    said = reca_fast("verify", copy)
    assert said.code == 1 and "FAIL  scalar/loss" in said.out and "FAIL  scalar/mse" not in said.out


def test_an_expectation_that_nobody_computes_fails(copy, reca_fast) -> None:
    tensors = load_file(copy / "expected.safetensors")
    wrong_shape = tensors["x_t"][:-1].clone()
    save_file(tensors | {"attention_map": torch.ones(3), "x_t": wrong_shape}, copy / "expected.safetensors")
    said = reca_fast("verify", copy)
    assert said.code == 1 and "FAIL  attention_map  not computed" in said.out and "FAIL  x_t  [" in said.out


def test_freezing_by_requires_grad_alone_is_seen(case_folder, reca_fast, monkeypatch) -> None:
    """Without the cut latents -> markers -> latents the loss is right and the gradients are wrong."""
    forward = MoTLayer.forward

    def without_cut(self, und, gen, plan, backend, past=None, frozen=True, need_und=True):
        return forward(self, und, gen, plan, backend, past, False, need_und)

    monkeypatch.setattr(MoTLayer, "forward", without_cut)
    said = reca_fast("verify", case_folder)
    assert said.code == 1
    failed = [line.split()[1] for line in said.out.splitlines() if line.startswith("FAIL")]
    assert failed and all("grad" in name and not name.startswith("joint/") for name in failed)
    assert "ok    scalar/loss  [" in said.out and "ok    velocity_pred  [" in said.out


# A case that cannot be read is one sentence and exit code 2


def rewrite(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


BROKEN = {
    "no inputs": (lambda case: (case / "inputs.safetensors").unlink(), r"inputs\.safetensors"),
    "cut inputs": (lambda case: os.truncate(case / "inputs.safetensors", 1000), r"inputs\.safetensors"),
    "no config": (lambda case: (case / "config.json").unlink(), r"config\.json is missing"),
    "cut config": (lambda case: os.truncate(case / "config.json", 100), r"config\.json cannot be read as JSON"),
    "config of another model": (
        lambda case: (case / "config.json").write_text("{}"),
        "describes none of the models bagel",
    ),
    "no weights": (lambda case: (case / "weights.safetensors").unlink(), r"weights\.safetensors is missing"),
    "cut weights": (
        lambda case: os.truncate(case / "weights.safetensors", 9000),
        r"weights\.safetensors is not a whole",
    ),
    "strange key": (
        lambda case: rewrite(case / "weights.safetensors", lambda x: x.update(extra=torch.ones(1))),
        r"1 unexpected \(extra\)",
    ),
    "lost key": (
        lambda case: rewrite(case / "weights.safetensors", lambda x: x.pop("llm2vae.bias")),
        r"1 missing \(llm2vae\.bias\)",
    ),
    "lost input": (lambda case: rewrite(case / "inputs.safetensors", lambda x: x.pop("noise")), "lacks noise"),
    "cut expectation": (
        lambda case: os.truncate(case / "expected.safetensors", 9000),
        r"expected\.safetensors is not a whole safetensors file",
    ),
    "two targets in a sample": (
        lambda case: rewrite(case / "inputs.safetensors", lambda x: x["attn_modes"].fill_(2)),
        "noise splits",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_case_is_one_sentence(fault, copy, reca_fast) -> None:
    damage, message = BROKEN[fault]
    damage(copy)
    said = reca_fast("verify", copy)
    assert re.search(message, said.sentence)


def test_impossible_calls_are_one_sentence(copy, reca_fast, tmp_path) -> None:
    assert "does not exist" in reca_fast("verify", tmp_path / "nowhere").sentence
    (tmp_path / "empty").mkdir()
    assert "neither a parity case (config.json and" in reca_fast("verify", tmp_path / "empty").sentence
    assert "is a file; verify takes a folder" in reca_fast("verify", copy / "config.json").sentence
    assert "nowhere is missing" in reca_fast("verify", copy, "--weights", tmp_path / "nowhere").sentence
    assert "needs an NVIDIA GPU" in reca_fast("verify", copy, "--attention", "torch").sentence
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert str(blocked) in reca_fast("verify", copy, "--out", blocked / "out.safetensors").sentence


# A checkpoint folder instead of a case


def test_a_checkpoint_folder_is_checked_alone(tiny_folder, reca_fast, tmp_path) -> None:
    said = reca_fast("verify", tiny_folder)
    assert said.code == 0 and "a whole BAGEL checkpoint" in said.out
    broken = shutil.copytree(tiny_folder, tmp_path / "broken")
    rewrite(broken / "ema.safetensors", lambda x: x.pop("vae2llm.bias"))
    assert "1 missing (vae2llm.bias)" in reca_fast("verify", broken).sentence
