"""What is predicted on fake tensors is what a run on the CPU takes: within 5 % of what torch's allocator gave out."""

from dataclasses import replace
from typing import Any

import pytest

from reca_fast.config import DataConfig, MemoryConfig, ModelConfig, OptimConfig, ResizeConfig, RunConfig
from reca_fast.models.bagel.config import BagelConfig, LLMConfig
from reca_fast.models.bagel.model import BagelModel
from reca_fast.models.bagel.tiny.config import DEMO_VAE
from reca_fast.models.parts.siglip_config import SiglipConfig
from reca_fast.plan.simulate import Alone, make_pack, step_on_fakes
from reca_fast.train.assemble import assemble
from reca_fast.train.step import train_step
from tests.builders import MARKERS
from tests.oracles.allocations import peak_of

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = BagelConfig(
    LLMConfig(256, 640, 3, 4, 2, 512), SiglipConfig(64, 96, 2, 4, 980), vae=DEMO_VAE, latent_downsample=4
)
DATA = DataConfig(
    condition_resize=ResizeConfig(56, 56, 14),
    target_resize=ResizeConfig(64, 64, 8),
    tokens_per_pack=250,
    packs_per_step=2,
)
LAYERWISE = {"order": "layer", "recompute": "blocks"}
LEVERS: dict[str, dict[str, Any]] = {
    "none": {},
    "recompute": {"recompute": "blocks"},
    "selective": {"recompute": "selective"},
    "activations on the host": {"recompute": "blocks", "keep_on": "host"},
    "MLP in chunks": {"mlp_rows": 32},
    "bf16": {"trained": "bf16"},
    "int8": {"frozen": "int8"},
    "layer": LAYERWISE,
    "gradients on the host": LAYERWISE | {"gradients": "host"},
    "gradients twice": LAYERWISE | {"gradients": "twice"},
    "frozen on the host": LAYERWISE | {"frozen_on": "host"},
    "swap": LAYERWISE | {"swap": 0.5},
    "swap and twice": LAYERWISE | {"swap": 1.0, "gradients": "twice"},
    "swap, host and bf16": LAYERWISE | {"swap": 1.0, "gradients": "host", "trained": "bf16"},
    "all on the host": LAYERWISE | {"swap": 1.0, "gradients": "host", "frozen_on": "host", "trained": "bf16"},
    "int8 and bf16": LAYERWISE | {"frozen": "int8", "trained": "bf16"},
    "frozen on the host and twice": LAYERWISE | {"frozen_on": "host", "gradients": "twice", "trained": "bf16"},
}
QUICK = ("none", "swap, host and bf16")


def opened(config: RunConfig) -> BagelModel:
    return BagelModel(SMALL, config.model, MARKERS)


@pytest.mark.parametrize(
    "levers",
    [pytest.param(levers, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, levers in LEVERS.items()],
)
def test_predicted_and_measured_peaks_agree(levers: dict[str, Any]) -> None:
    config = RunConfig(
        device="cpu", data=DATA, model=ModelConfig(), memory=MemoryConfig(**levers), optim=OptimConfig(warmup_steps=0)
    )

    def prepare():
        model = opened(config)
        inputs = model.inputs(config.data)
        run = assemble(config, Alone(), model, empty=True)
        packs = [make_pack(config, inputs, number) for number in range(2)]
        return lambda: [train_step(run, packs) for _ in range(2)]

    measured = peak_of(prepare)
    predicted = step_on_fakes(replace(config), opened(config), 2, on_gpu=False)
    total = predicted.device.total + predicted.host.total
    assert total == pytest.approx(measured, rel=0.05)
