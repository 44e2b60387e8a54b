"""The scatter reference against the recorded cases, and the case writer against their layout."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bench.make_case import make_case
from bench.random_pack import Sample
from bench.scatter_reference import ScatterBagel
from tests.places import BAGEL

RUNS = [
    (BAGEL / "recorded_pixels", ""),
    (BAGEL / "recorded_joint", ""),
    (BAGEL / "recorded_joint", "_joint"),
    (BAGEL / "mha_joint", ""),
    (BAGEL / "mha_joint", "_joint"),
    (BAGEL / "gqa4_single_row", ""),
    (BAGEL / "wide_head_drops", ""),
]
VARIANTS = [("generic", False), ("generic", True), ("fused", False), ("fused", True)]


@pytest.fixture(autouse=True)
def one_thread():
    """The cases are tiny: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("kernel", "checkpointing"), VARIANTS)
@pytest.mark.parametrize(("folder", "run"), RUNS, ids=lambda value: getattr(value, "name", value) or "reca")
def test_reproduces_every_number_of_a_case(folder: Path, run: str, kernel: str, checkpointing: bool) -> None:
    config = json.loads((folder / "config.json").read_text())
    expected = load_file(folder / f"expected{run}.safetensors")
    facts = json.loads((folder / f"expected{run}.json").read_text())
    model = ScatterBagel(config, freeze_und=facts["freeze_und"], kernel=kernel, checkpointing=checkpointing)
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    got: dict[str, torch.Tensor] = {}
    loss = model(load_file(folder / "inputs.safetensors"), with_ce=facts["with_ce"], trace=got)
    loss.backward()

    params = dict(model.named_parameters())
    got |= {f"grad.{name}": p.grad for name, p in params.items() if p.grad is not None}
    assert loss.item() == pytest.approx(facts["loss"], rel=1e-6)
    for name, value in expected.items():
        if name == "vae_moments":  # the reference starts behind the VAE
            continue
        error = (got[name] - value).abs().max().item()
        assert error <= 1e-5 * max(1.0 if not name.startswith("grad.") else 0.0, value.abs().max().item()), name

    norms = {name: p.grad.norm().item() for name, p in params.items() if p.grad is not None}
    assert {name for name, norm in norms.items() if norm > 0} == set(facts["params_with_nonzero_grad"])
    assert {name for name, norm in norms.items() if norm == 0} == set(facts["params_with_exactly_zero_grad"])
    assert {name for name, p in params.items() if not p.requires_grad} == set(facts["params_frozen"])


def test_layer_routes_by_gather_and_scatter() -> None:
    """The style that the benchmark stands for: 17 gathers and 21 row assignments per layer forward."""
    from torch.profiler import profile

    folder = BAGEL / "gqa4_single_row"
    model = ScatterBagel(json.loads((folder / "config.json").read_text()))
    inputs = load_file(folder / "inputs.safetensors")
    with profile() as shallow:
        model(inputs)
    layers: Any = model.language_model["model"].layers
    layers.append(layers[0])
    with profile() as deep:
        model(inputs)
    counts = [{event.key: event.count for event in run.key_averages()} for run in (shallow, deep)]
    added = {name: counts[1][name] - counts[0][name] for name in ("aten::index", "aten::index_put_")}
    assert added == {"aten::index": 17, "aten::index_put_": 21}


def layout(folder: Path, file: str) -> dict[str, tuple[torch.dtype, int]]:
    return {name: (value.dtype, value.ndim) for name, value in load_file(folder / file).items()}


def test_written_case_has_recorded_layout(tmp_path: Path) -> None:
    recorded = BAGEL / "recorded_joint"
    samples = [
        Sample(3, (28, 14), (16, 32)),
        Sample(2, (14, 14), (32, 16)),
        Sample(1, (14, 28), (16, 16), text_dropped=True),
    ]
    made = make_case(
        tmp_path, seed=5, llm={"num_hidden_layers": 3}, vit={"num_hidden_layers": 4}, samples=samples, joint=True
    )
    for file in ("weights", "inputs", "expected", "expected_joint"):
        assert layout(made, f"{file}.safetensors") == layout(recorded, f"{file}.safetensors"), file
    for file in ("config.json", "expected.json", "expected_joint.json"):
        ours, theirs = (json.loads((folder / file).read_text()) for folder in (made, recorded))
        assert {key: type(value) for key, value in ours.items()} == {key: type(value) for key, value in theirs.items()}


def test_case_inputs_follow_the_packing_rules(tmp_path: Path) -> None:
    """Rotary positions, marker places and the mask of one tiny pack, written out by hand."""
    samples = [Sample(1, (14, 28), (16, 16)), Sample(4, (14, 14), (16, 16), text_dropped=True)]
    inputs = load_file(make_case(tmp_path, seed=0, llm={}, vit={}, samples=samples) / "inputs.safetensors")
    assert inputs["packed_position_ids"].tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 4, 4, 0, 0, 0, 1, 1, 1]
    assert inputs["packed_text_ids"].tolist()[:4] == [62, 63, 60, inputs["packed_text_ids"][3].item()]
    assert inputs["packed_text_indexes"].tolist() == [0, 3, 4, 5, 6, 7, 9, 10, 12, 13, 15]
    assert inputs["packed_vae_token_indexes"].tolist() == [8, 14]
    rows = ["".join(".x"[int(cell)] for cell in row) for row in inputs["attention_allowed.0"]]
    assert rows == ["xxxx......"] * 4 + ["xxxxx.....", "xxxxxx....", "xxxxxxx..."] + ["xxxxxxxxxx"] * 3


def test_rejects_sizes_that_do_not_fit(tmp_path: Path) -> None:
    for vit_hw in ((15, 28), (14, 140)):
        with pytest.raises(ValueError, match="patch"):
            make_case(tmp_path, seed=0, llm={}, vit={}, samples=[Sample(1, vit_hw, (16, 16))])
