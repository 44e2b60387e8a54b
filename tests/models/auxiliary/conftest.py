"""Tiny VLMs of each family, written once for all tests of this folder: importing transformers takes seconds."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reca_fast.config import AuxiliaryConfig, DataConfig, ModelConfig, ResizeConfig
from reca_fast.memory import fill_model
from reca_fast.models.auxiliary import AuxiliaryModel
from reca_fast.models.auxiliary.tiny import write_tiny_vlm
from reca_fast.sample import Sample, Text, Turn

SQUARES = DataConfig(
    condition_resize=ResizeConfig(56, 56, 28, fit="squash"), target_resize=ResizeConfig(32, 16, 8, fit="squash")
)
FLAVOURS = ("llava", "qwen", "internvl")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Flavour -> checkpoint folder. Qwen's is in several files."""
    root = tmp_path_factory.mktemp("vlms")
    for flavour in FLAVOURS:
        shards = "100KB" if flavour == "qwen" else "1GB"
        write_tiny_vlm(root / flavour, flavour, side=56, hidden_size=32, shard_size=shards)
    write_tiny_vlm(root / "qwen2", "qwen2", side=56, hidden_size=32)
    return {flavour: root / flavour for flavour in (*FLAVOURS, "qwen2")}


@pytest.fixture
def opened(folders: dict[str, Path]) -> Callable[..., AuxiliaryModel]:
    """opened(flavour, target="pixel", ...): the model with its weights, in fp32 unless a precision is given."""

    def open_and_fill(flavour: str = "llava", **options: Any) -> AuxiliaryModel:
        own = {name: options.pop(name) for name in ("target", "vae", "decoder_size") if name in options}
        auxiliary = AuxiliaryConfig(**{"decoder_size": 0.05, **own})
        settings = {"path": str(folders[flavour]), "precision": "fp32", "freeze_und": False, **options}
        model = AuxiliaryModel.open(ModelConfig(auxiliary=auxiliary, **settings))
        fill_model(model, torch.device("cpu"))
        return model

    return open_and_fill


def picture(width: int, height: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def sample_of(
    model: AuxiliaryModel,
    tasks: Sequence[str],
    *turns: tuple[str, str],
    size: tuple[int, int] = (56, 56),
    data: DataConfig = SQUARES,
    seed: int = 0,
) -> Sample:
    """A sample of one picture with a conversation about it, as the loader would make it."""
    inputs = model.inputs(data)
    text: Text | None = inputs.converse([Turn(*turn) for turn in turns]) if turns else None
    plan = inputs.plan(tasks, size, text)
    condition, target = (None if side is None else picture(*side, seed=seed) for side in (plan.condition, plan.target))
    return Sample(f"sample {seed}", tuple(tasks), condition, target, text)


def collated(model: AuxiliaryModel, *samples: Sample, data: DataConfig = SQUARES) -> Any:
    return model.inputs(data).collate(samples, torch.Generator())
