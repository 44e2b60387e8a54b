"""Models, found by their checkpoint folder. The trainer sees the protocol below and no model by name.

Adding a model: one line in ADAPTERS, and a room of its own beside `bagel/`.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reca_fast.config import DataConfig, ModelConfig, SamplingConfig
from reca_fast.data.inputs import Inputs
from reca_fast.errors import UserError
from reca_fast.sample import Sample

ADAPTERS = {"llm_config.json": "reca_fast.models.bagel:BagelAdapter"}
"""File that tells a checkpoint folder's model -> its adapter."""


class Adapter(Protocol):
    """What training, sampling and export need of a model."""

    module: nn.Module
    dtype: torch.dtype  # of the arithmetic

    def files(self) -> Sequence[Path]:
        """The files of the checkpoint folder that the model is made of: others there have no effect."""

    def says_weights(self) -> str:
        """One line that says which file `load` reads."""

    def blocks(self) -> Sequence[nn.Module]:
        """The repeated blocks: sharded and compiled one by one."""

    def decays(self, name: str) -> bool:
        """Whether weight decay acts on the parameter of that name: on matrices, not on biases, norms and embeddings."""

    def load(self, device: torch.device) -> None:
        """Fill the module (on the meta device, possibly sharded by now) from the checkpoint folder."""

    def inputs(self, config: DataConfig) -> Inputs: ...

    def encode(self, batch: Any) -> Any: ...

    def loss_sums(self, batch: Any) -> dict[str, Tensor]:
        """Task -> sum of per-token losses of an encoded batch."""

    def flops(self, batch: Any) -> float:
        """Useful floating-point operations of forward and backward on this batch."""

    def reconstruct(self, samples: Sequence[Sample], sampling: SamplingConfig, first: int = 0) -> list[Tensor]:
        """Pictures uint8 [H, W, 3] drawn from the samples' conditions at the size of their targets, the i-th from the
        noise of seed sampling.seed + first + i.
        """

    def generate(
        self, prompts: Sequence[str], size: tuple[int, int], sampling: SamplingConfig, first: int = 0
    ) -> list[Tensor]:
        """Pictures uint8 [H, W, 3] of (width, height) from text alone, seeded as in `reconstruct`."""

    def export(self, folder: Path, weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> list[str]:
        """Write a checkpoint folder in the authors' layout, with `weights` (by module name) in place of the base's.
        Returns what else lies in the base's folder and was not copied.
        """


def open_adapter(config: ModelConfig) -> Adapter:
    """The adapter of the checkpoint folder `config.path`, its module still on the meta device.

    Raises:
        UserError: no such folder, or a folder of no known model.
    """
    if not config.path:
        raise UserError("No checkpoint given; set --model.path to a BAGEL folder.")
    folder = Path(config.path)
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise UserError(f"The checkpoint folder {folder} {what}; set --model.path to a BAGEL folder.")
    for file, target in ADAPTERS.items():
        if (folder / file).exists():
            module, name = target.split(":")
            return getattr(importlib.import_module(module), name).open(config)
    if any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds weights, but {' and '.join(ADAPTERS)} is missing; copy it there.")
    raise UserError(f"{folder} is no checkpoint of a known model: it holds none of {', '.join(ADAPTERS)}.")
