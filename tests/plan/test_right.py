"""What is predicted on fake tensors is what a run on the CPU takes: within 5 % of what torch's allocator gave out."""

from dataclasses import replace
from typing import Any

import pytest

from reca_fast.config import DataConfig, LoraConfig, MemoryConfig, ModelConfig, OptimConfig, ResizeConfig, RunConfig
from reca_fast.models.bagel.config import BagelConfig, LLMConfig
from reca_fast.models.bagel.model import BagelModel
from reca_fast.models.bagel.tiny.config import DEMO_VAE
from reca_fast.models.parts.siglip_config import SiglipConfig
from reca_fast.plan.simulate import Alone, make_packs, step_on_fakes
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
LEVERS: dict[str, dict[str, Any]] = {  # of memory, where it is not said otherwise
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
    "nf4": {"frozen": "nf4"},
    "int8 products": {"matmul": "int8"},
    "states on the host": {"optim": {"states": "host"}},
    "adamw8bit": {"optim": {"kind": "adamw8bit"}},
    "adamw8bit_ao": {"optim": {"kind": "adamw8bit_ao"}},
    "adamw4bit_ao": {"optim": {"kind": "adamw4bit_ao"}},
    "adafactor": {"optim": {"kind": "adafactor"}},
    "lora": {"lora": {"rank": 8}},
    "QLoRA": {"frozen": "nf4", "lora": {"rank": 8}},
    "cache": {"data": {"cache": "cache"}},
    "bf16, 8-bit states on the host": LAYERWISE
    | {"trained": "bf16", "gradients": "host", "optim": {"kind": "adamw8bit_ao", "states": "host"}},
    "cache, selective and chunks": {
        "recompute": "selective",
        "mlp_rows": 32,
        "trained": "bf16",
        "data": {"cache": "cache"},
        "optim": {"kind": "adafactor"},
    },
}
NEEDS = {"nf4": "bitsandbytes", "adamw8bit": "bitsandbytes", "adamw8bit_ao": "torchao", "adamw4bit_ao": "torchao"}
QUICK = ("none", "swap, host and bf16")


def configured(levers: dict[str, Any]) -> RunConfig:
    """With these levers; pytest.skip where a library that one of them needs is missing."""
    of = {name: levers.get(name, {}) for name in ("optim", "lora", "data")}
    memory = {name: value for name, value in levers.items() if name not in of}
    for value in (memory.get("frozen"), of["optim"].get("kind")):
        if value in NEEDS:
            pytest.importorskip(NEEDS[value], reason=f"{NEEDS[value]} is not installed")
    if of["lora"]:
        pytest.importorskip("peft", reason="peft is not installed")
    return RunConfig(
        device="cpu",
        data=replace(DATA, **of["data"]),
        model=ModelConfig(),
        memory=MemoryConfig(**memory),
        lora=LoraConfig(**of["lora"]),
        optim=OptimConfig(warmup_steps=0, **of["optim"]),
    )


def opened(config: RunConfig) -> BagelModel:
    return BagelModel(SMALL, config.model, MARKERS)


MIXED = {"all on the host", "bf16, 8-bit states on the host", "QLoRA", "cache, selective and chunks"}
"""Mixtures that have most levers in them: these are part of `make test`, the others of `make test-all`."""


def marks(name: str) -> tuple[pytest.MarkDecorator, ...]:
    if name in QUICK:
        return ()
    return (pytest.mark.slow,) if name in MIXED else (pytest.mark.slow, pytest.mark.exhaustive)


@pytest.mark.parametrize(
    "levers",
    [pytest.param(levers, id=name, marks=marks(name)) for name, levers in LEVERS.items()],
)
def test_predicted_and_measured_peaks_agree(levers: dict[str, Any]) -> None:
    config = configured(levers)

    def prepare():
        model = opened(config)
        packs = make_packs(config, model, 2)
        run = assemble(config, Alone(), model, empty=True)
        return lambda: [train_step(run, packs) for _ in range(2)]

    measured = peak_of(prepare)
    predicted = step_on_fakes(replace(config), opened(config), 2, on_gpu=False)
    total = predicted.device.total + predicted.host.total
    assert total == pytest.approx(measured, rel=0.05)
