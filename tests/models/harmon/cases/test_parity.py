"""`reca-fast verify` on Harmon's recorded cases: losses, gradients, what lies between, and drawn pictures."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.places import PARITY

MORE = os.environ.get("RECA_FAST_PARITY_CASES")
CASES = [
    config.parent
    for place in (PARITY / "harmon", MORE)
    if place
    for config in sorted(Path(place).glob("*/config.json"))
    if "mar" in json.loads(config.read_text())
]


@pytest.fixture(params=CASES, ids=lambda folder: folder.name)
def case(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.mark.parametrize(("attention", "dtype"), [("sdpa", "fp32"), ("eager", "fp64"), ("sdpa", "bf16")])
def test_agrees_with_the_authors(case, attention, dtype, reca_fast) -> None:
    said = reca_fast("verify", case, "--attention", attention, "--dtype", dtype)
    assert said.code == 0, said.out
    assert said.out.rstrip().endswith(f"attention={attention}, {dtype}: all agree.")


def test_everything_is_computed_without_expected_files(case, reca_fast, tmp_path) -> None:
    copy, out = tmp_path / "case", tmp_path / "out.safetensors"
    shutil.copytree(case, copy, ignore=shutil.ignore_patterns("expected*"))
    assert reca_fast("verify", copy, "--out", out).code == 0
    wanted = {name: tuple(x.shape) for name, x in load_file(case / "expected.safetensors").items()}
    for task, numbers in json.loads((case / "expected.json").read_text()).items():
        wanted |= {f"scalar/{task}.{name}": () for name in ("loss", "grad_norm") if name in numbers}
    written = {name: tuple(x.shape) for name, x in load_file(out).items()}
    assert {name: written.get(name) for name in wanted} == wanted


MISTAKES = {
    "grad_scale": (lambda raw: raw | {"grad_scale": 1.0}, "recon.grad.mar.encoder_blocks.0.attn.qkv.weight"),
    "vae_scale": (lambda raw: raw | {"vae_scale": 0.25}, "latent_tokens"),
    "heads": (lambda raw: raw | {"mar": raw["mar"] | {"encoder_num_heads": 1}}, "recon.enc_full"),
    "guidance": (lambda raw: raw | {"sample": raw["sample"] | {"cfg": 1.5}}, "sample.tokens"),
    "rope": (lambda raw: raw | {"llm": raw["llm"] | {"rope_theta": 9e5}}, "recon.llm_hidden_tail"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_setting_is_seen(mistake, reca_fast, tmp_path) -> None:
    copy = Path(shutil.copytree(PARITY / "harmon" / "recorded_latents", tmp_path / "case"))
    change, seen = MISTAKES[mistake]
    path = copy / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    said = reca_fast("verify", copy)
    assert said.code == 1 and f"FAIL  {seen}" in said.out


def test_steps_that_contradict_each_other_are_one_sentence(reca_fast, tmp_path) -> None:
    copy = Path(shutil.copytree(PARITY / "harmon" / "recorded_latents", tmp_path / "case"))
    raw = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(raw | {"mar": raw["mar"] | {"num_sampling_steps": "8"}}))
    said = reca_fast("verify", copy)
    assert said.code == 2 and "timestep_map is not what mar.num_sampling_steps '8' keeps" in said.err


def test_padding_does_not_count(reca_fast, tmp_path) -> None:
    """More of it on the right changes positions' shape alone, which are those of the padded rows."""
    copy = Path(shutil.copytree(PARITY / "harmon" / "recorded_latents", tmp_path / "case"))
    inputs = load_file(copy / "inputs.safetensors")
    for name in [name for name in inputs if name.endswith(("ids", "mask", "labels")) and name[-10:] != "recon.mask"]:
        if inputs[name].dtype in (torch.int64, torch.uint8) and "orders" not in name:
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, 3), value=-100 if "labels" in name else 0)
    save_file(inputs, copy / "inputs.safetensors")
    said = reca_fast("verify", copy)
    failed = [line.split()[1] for line in said.out.splitlines() if line.startswith("FAIL")]
    assert failed == ["recon.position_ids", "text2image.position_ids"]


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("recon.timesteps", lambda x: None, "lacks recon.timesteps, of shape ["),
        ("text2image.noise", lambda x: x[:, :1], "its shape must be [128, 6]"),
        ("image2text.labels", lambda x: x[:, 1:], "image2text.labels is"),
        ("raw_latents", lambda x: x.flatten(2), "raw_latents is"),
        ("text2image.input_ids", lambda x: None, "lacks text2image.input_ids"),
        ("sample.orders", lambda x: None, "lacks sample.orders"),
        ("sample.init_noise.2", lambda x: x[1:], "its shape must be [10, 6]"),
        ("sample.step_noise.1", lambda x: None, "lacks sample.step_noise.1, of shape [8, any, 6]"),
        ("sample.orders", lambda x: x * 0, "no permutations of 16 tokens"),
        ("recon.input_ids", lambda x: x.clamp(min=0), "not every row of recon.input_ids has one -200"),
        ("recon.mask", lambda x: x / 0, "holds NaN or infinite numbers"),
        ("image2text.input_ids", lambda x: x + 120, "ids beyond the vocabulary"),
        ("image2text.labels", lambda x: x.flip(1), "are not the tokens behind the condition"),
    ],
)
def test_a_broken_case_is_one_sentence(name, change, sentence, reca_fast, tmp_path) -> None:
    copy = Path(shutil.copytree(PARITY / "harmon" / "recorded_latents", tmp_path / "case"))
    inputs = load_file(copy / "inputs.safetensors")
    changed = change(inputs.pop(name))
    save_file(inputs if changed is None else inputs | {name: changed.contiguous()}, copy / "inputs.safetensors")
    said = reca_fast("verify", copy)
    assert said.code == 2 and sentence in said.err
