"""The eager steps that ours is measured against are the authors': they compute what recorded cases hold, and what ours
computes.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.ways import Work, harmon, openuni
from bench.ways.harmon_eager import EagerHarmon
from bench.ways.openuni_eager import EagerOpenUni
from tests.places import PARITY

pytestmark = pytest.mark.usefixtures("one_thread")


def cases(model: str) -> list[Path]:
    return sorted(path.parent for path in (PARITY / model).glob("*/weights.safetensors"))


def read(case: Path) -> tuple[dict, dict, dict, dict]:
    """config, inputs, weights, expected."""
    files = (load_file(case / f"{name}.safetensors") for name in ("inputs", "weights", "expected"))
    return json.loads((case / "config.json").read_text()), *files


def agree(model: torch.nn.Module, loss: torch.Tensor, expected: dict, run: str = "") -> None:
    loss.backward()
    torch.testing.assert_close(loss.view(1), expected[f"{run}loss"], rtol=2e-5, atol=0)
    parameters, recorded = dict(model.named_parameters()), [name for name in expected if name.startswith(f"{run}grad.")]
    assert recorded
    for name in recorded:
        found, wanted = parameters[name.removeprefix(f"{run}grad.")].grad, expected[name]
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("case", cases("openuni"), ids=lambda case: case.name)
def test_eager_openuni_is_the_authors(case) -> None:
    config, inputs, weights, expected = read(case)
    model = EagerOpenUni(config).load(weights).eval()
    agree(model, model(inputs), expected)


@pytest.mark.parametrize(
    "case", [case for case in cases("harmon") if "raw_latents" in read(case)[1]], ids=lambda c: c.name
)
@pytest.mark.parametrize("run", ["recon", "text2image", "image2text"])
def test_eager_harmon_is_the_authors(case, run) -> None:
    config, inputs, weights, expected = read(case)
    model = EagerHarmon(config, recompute=False).load(weights)
    agree(model, model(inputs, run), expected, f"{run}.")


@pytest.mark.parametrize("model", [openuni, harmon], ids=["openuni", "harmon"])
def test_every_way_computes_the_same_steps(model, tmp_path) -> None:
    model.write("tiny", tmp_path)
    work = Work("tiny", tmp_path, "fp32", torch.device("cpu"), update=True)
    losses = {}
    for name, way in model.WAYS.items():
        step = model.build(way, work)
        losses[name] = [step() for _ in range(3)]
    for name, found in losses.items():
        assert found == pytest.approx(losses["authors"], rel=1e-4), name
    assert losses["authors"][2] < losses["authors"][0]
