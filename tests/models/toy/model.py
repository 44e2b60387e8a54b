"""The toy: a transformer that says the codes of masked tokens, after a frozen linear encoder and a frozen codebook."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca_fast.config import DataConfig, ModelConfig, SamplingConfig
from reca_fast.data.inputs import Size
from reca_fast.errors import UserError
from reca_fast.kernels import fused_linear_cross_entropy
from reca_fast.models.choices import choose_operations
from reca_fast.models.files import (
    SAME_NAMES,
    Change,
    Place,
    Stored,
    after,
    check_finite,
    check_fit,
    fill,
    open_weights,
    rewrite_weights,
    uniform,
    write_safetensors,
)
from reca_fast.models.files.folder import copy_files, read_object, write_object
from reca_fast.models.files.identity import identity_of_tensors
from reca_fast.models.protocol import Case, FrozenPart
from reca_fast.sample import Sample
from reca_fast.schema import from_dict

from .batch import LEVELS, MAX_TOKENS, PATCH, TEXT_IDS, ToyBatch, ToyInputs, pack

CONFIG, WEIGHTS = "toy.json", "toy.safetensors"
NETWORK_NAMES = SAME_NAMES.within(file="network.")
EYE_NAMES = SAME_NAMES.within(file="eye.")


@dataclass(frozen=True)
class ToySampling:
    steps: int = 4


@dataclass(frozen=True)
class ToyConfig:
    """Sizes of the toy."""

    width: int = 32
    blocks: int = 2


class Block(nn.Module):
    """Attention within each sample, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        wide = 4 * width
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [rows, width], mask bool [rows, rows] -> [rows, width]."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, -1)).unbind(1)
        x = x + self.out(F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0])
        return x + self.mlp(x)


class Network(nn.Module):
    """What is trained."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.text = nn.Embedding(TEXT_IDS, config.width)
        self.code = nn.Embedding(LEVELS + 1, config.width)  # the last one stands for a masked token
        self.position = nn.Embedding(MAX_TOKENS, config.width)
        self.blocks = nn.ModuleList(Block(config.width) for _ in range(config.blocks))
        self.head = nn.Linear(config.width, LEVELS, bias=False)

    def forward(self, batch: ToyBatch, features: Tensor, codes: Tensor) -> Tensor:
        """The last block's output at the target tokens, whose codes (LEVELS where masked) are given."""
        x = torch.cat((features.to(self.code.weight.dtype), self.text(batch.text_ids), self.code(codes)))
        x = x + self.position(batch.position_of_row)
        mask = batch.sample_of_row[:, None] == batch.sample_of_row
        for block in self.blocks:
            x = block(x, mask)
        return x[len(x) - len(codes) :]


class ToyModel:
    """The toy behind the protocol `reca_fast.models.protocol.Model`."""

    MARK: ClassVar[str] = CONFIG
    PUBLISHED: ClassVar[Sequence[str]] = ("toy-1m",)
    SAMPLING: ClassVar[type] = ToySampling
    module: Network

    def __init__(self, config: ToyConfig, options: ModelConfig) -> None:
        self.config, self.options, self.folder = config, options, Path(options.path)
        self.dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
        if options.weights != "auto":
            raise UserError(f"model.weights is {options.weights}; a toy has one file of weights, leave it at auto.")
        with torch.device("meta"):
            self.module = Network(config)
            self.eye = nn.Linear(3 * PATCH**2, config.width).requires_grad_(False)

    @property
    def drawn_side(self) -> int:
        """Toys draw small."""
        return 16

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return (folder / CONFIG).exists()

    @classmethod
    def open(cls, options: ModelConfig) -> "ToyModel":
        path = Path(options.path) / CONFIG
        return cls(from_dict(ToyConfig, read_object(path), str(path)), options)

    @classmethod
    def published(cls, name: str, options: ModelConfig) -> "ToyModel | None":
        return cls(ToyConfig(width=128, blocks=5), options) if name in cls.PUBLISHED else None

    @classmethod
    def case(cls, folder: Path) -> Case | None:
        return None

    @classmethod
    def check(cls, folder: Path, weights: str = "auto") -> str:
        model = cls.open(ModelConfig(path=str(folder), weights=weights))
        with open_weights(folder / WEIGHTS) as stored:
            check_fit(stored, (model.module, NETWORK_NAMES), (model.eye, EYE_NAMES))
        check_finite(folder / WEIGHTS)
        return f"{folder}: a whole toy."

    def inputs(self, config: DataConfig) -> ToyInputs:
        return ToyInputs(config)

    def tokenize(self, text: str) -> list[int]:
        return ToyInputs(DataConfig()).tokenize(text)

    def files(self) -> Sequence[Path]:
        return [self.folder / CONFIG, self.folder / WEIGHTS]

    def says_weights(self) -> str:
        return f"weights: {self.folder / WEIGHTS}"

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.module.blocks)

    def decays(self, name: str) -> bool:
        return name.endswith(("qkv.weight", "out.weight", "mlp.1.weight", "mlp.3.weight", "head.weight"))

    def fill(self, place: Place) -> None:
        choose_operations(self.options, place("head.weight", self.module.head.weight).device, self.dtype)
        with open_weights(self.folder / WEIGHTS) as weights:
            fill(self.module, weights, place, NETWORK_NAMES)

    def fill_encoders(self, device: torch.device) -> None:
        with open_weights(self.folder / WEIGHTS) as weights:
            fill(self.eye, weights, uniform(torch.float32, device), EYE_NAMES)

    def drop_encoders(self) -> None:
        self.eye = self.eye.to("meta")

    def autocast(self) -> AbstractContextManager[object]:
        """Trained weights are fp32 whatever the dtype of the arithmetic is. Their narrow copies are not kept."""
        weight = self.module.head.weight
        if weight.dtype == self.dtype:
            return nullcontext()
        return torch.autocast(weight.device.type, self.dtype, cache_enabled=False)

    @torch.no_grad()
    def encode(self, batch: ToyBatch) -> ToyBatch:
        features, codes = batch.features, batch.codes
        if features is None:
            seen = [self.encode_condition(picture)["features"] for picture in batch.conditions]  # each alone
            features = torch.cat(seen) if seen else torch.zeros(0, self.config.width, device=batch.text_ids.device)
        if codes is None:
            said = [self.encode_target(picture)["codes"] for picture in batch.targets]
            codes = torch.cat(said) if said else batch.text_ids[:0]
        return replace(batch, features=features, codes=codes, conditions=(), targets=())

    @torch.no_grad()
    def encode_condition(self, picture: Tensor) -> dict[str, Tensor]:
        return {"features": self.eye(patches_of(picture))}

    def encode_target(self, picture: Tensor) -> dict[str, Tensor]:
        return {"codes": (patches_of(picture).mean(1) * LEVELS).long().clamp(max=LEVELS - 1)}

    def identity_of_encoders(self) -> dict[str, str]:
        with open_weights(self.folder / WEIGHTS) as weights:
            keys = {key: key for key in weights.shapes if EYE_NAMES.has(key)}
            return {"eye": identity_of_tensors(weights, keys, PATCH, LEVELS)}

    def loss_sums(self, batch: ToyBatch) -> dict[str, Tensor]:
        assert batch.features is not None and batch.codes is not None, "encode() comes first"
        seen = batch.codes.clone()
        for rows in batch.masked.values():
            seen[rows] = LEVELS
        head = self.module.head
        with self.autocast():
            hidden = self.module(batch, batch.features, seen)
            return {
                task: fused_linear_cross_entropy(hidden[rows], head.weight, batch.codes[rows], reduction="sum")
                for task, rows in batch.masked.items()
            }

    def flops(self, batch: ToyBatch) -> float:
        return 6.0 * batch.num_tokens * sum(p.numel() for p in self.module.blocks.parameters())

    @torch.no_grad()
    def sample(
        self, conditions: Sequence[Sample], sizes: Sequence[Size], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> list[Tensor]:
        """In each step the surest of the masked tokens are kept, so many that none is left after the last step."""
        steps = sampling.filled(ToySampling).steps
        pictures = []
        for sample, (width, height), seed in zip(conditions, sizes, seeds, strict=True):
            if width % PATCH or height % PATCH:
                raise UserError(f"A picture of {width} x {height} cannot be drawn: both sides must be multiples of 8.")
            draw = torch.Generator().manual_seed(seed)
            canvas = torch.zeros(height, width, 3, dtype=torch.uint8)
            device = self.module.head.weight.device
            batch = self.encode(pack([replace(sample, target=canvas)]).to(device))
            assert batch.features is not None and batch.codes is not None
            codes = torch.full_like(batch.codes, LEVELS)
            for step in range(steps):
                with self.autocast():
                    chances = self.module.head(self.module(batch, batch.features, codes)).float().softmax(-1)
                noise = torch.rand(chances.shape, generator=draw).to(device)
                said = (chances.log() - (-noise.log()).log()).argmax(-1)  # Gumbel's trick
                surest = torch.where(codes == LEVELS, chances.gather(1, said[:, None])[:, 0], -1.0)
                left = (codes == LEVELS).sum() - math.floor(len(codes) * (1 - (step + 1) / steps))
                keep = surest.topk(int(left)).indices
                codes[keep] = said[keep]
            grey = (codes.view(height // PATCH, width // PATCH) * 255 // (LEVELS - 1)).to(torch.uint8)
            rows = grey.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
            pictures.append(rows[..., None].expand(-1, -1, 3).cpu())
        return pictures

    def frozen(self) -> Sequence[FrozenPart]:
        keys = tuple(EYE_NAMES.key(name) for name, _ in self.eye.named_parameters())
        return [FrozenPart("eye", self.folder / WEIGHTS, keys)]

    @torch.no_grad()
    def understanding(self) -> Tensor:
        with torch.device("meta"):
            eye = nn.Linear(3 * PATCH**2, self.config.width).requires_grad_(False)
        with open_weights(self.folder / WEIGHTS) as weights:
            fill(eye, weights, uniform(torch.float32, "cpu"), EYE_NAMES)
        return eye(patches_of(torch.arange(3 * PATCH**2).view(PATCH, PATCH, 3).to(torch.uint8)))

    def export(self, folder: Path, weights: Mapping[str, Change], dtype: torch.dtype | None) -> list[str]:
        copy_files([self.folder / CONFIG], folder)
        with open_weights(self.folder / WEIGHTS) as stored:
            changed = {
                NETWORK_NAMES.key(name): (lambda base, name=name: after(weights[name], base)) for name in weights
            }
            rewrite_weights(stored, folder / WEIGHTS, changed=changed, added={}, dtype=dtype)
        return []


def patches_of(picture: Tensor) -> Tensor:
    """uint8 [H, W, 3] -> [tokens, 3 * 8 * 8] from 0 to 1."""
    height, width, _ = picture.shape
    grid = picture.view(height // PATCH, PATCH, width // PATCH, PATCH, 3).transpose(1, 2)
    return grid.reshape(-1, 3 * PATCH**2).float() / 255


def write_toy_checkpoint(folder: Path, config: ToyConfig | None = None) -> Path:
    """A checkpoint folder with random weights."""
    config = config or ToyConfig()
    folder.mkdir(parents=True)
    write_object(folder / CONFIG, vars(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = nn.ModuleDict({"network": Network(config), "eye": nn.Linear(3 * PATCH**2, config.width)})
    tensors = model.state_dict()
    layout = {key: Stored(tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
    write_safetensors(folder / WEIGHTS, layout, tensors.__getitem__)
    return folder
