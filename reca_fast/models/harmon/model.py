"""Harmon behind the protocol that every model keeps (`reca_fast.models.protocol.Model`)."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from reca_fast.config import DataConfig, ModelConfig, SamplingConfig
from reca_fast.config.rules import check_sampling
from reca_fast.data.inputs import Size
from reca_fast.errors import UserError
from reca_fast.kernels import mar_diffusion_loss, mar_noise
from reca_fast.models.choices import DTYPES, choose_operations
from reca_fast.models.files import Change, EmptyWeights, Place, check_finite, fill
from reca_fast.models.files.sharded import INDEX, open_sharded, weight_files
from reca_fast.models.parts.qwen_tokenizer import TOKENIZER_FILES
from reca_fast.models.protocol import Case, FrozenPart
from reca_fast.models.together import draw_together
from reca_fast.objectives import next_token_loss
from reca_fast.sample import I2T, Sample

from .batch import LATENTS, HarmonBatch
from .cases import HarmonCase, RecordedCase
from .collate import grid_of
from .config import PUBLISHED, HarmonConfig
from .encoders import HarmonEncoders
from .export import export_folder
from .flops import step_flops
from .inputs import HarmonInputs
from .names import NETWORK_NAMES
from .network import Harmon, Prediction
from .positions import Grid
from .sampling import HarmonSampling, Prefix, Seeded, sample_latents
from .tokenizer import PUBLISHED_TOKENIZER, HarmonTokenizer, open_tokenizer
from .understanding import frozen_parts, understanding_logits
from .weights import (
    VAE_FILE,
    check_head,
    check_weights,
    found_weights,
    holds_mar,
    is_authors,
    shapes_of,
    vae_place,
    weights_file,
)


class HarmonModel:
    """One Harmon: the network (`module`), and beside it the frozen VAE and the tokenizer. The methods are those of
    `reca_fast.models.protocol.Model`.

    Args:
        config: sizes of the model.
        options: `options.path` is the checkpoint folder; methods that read no files work without it.
        tokenizer: None where no text is read; `tokenize`, `inputs` and `sample` need one.
    """

    MARK: ClassVar[str] = "harmon_1.5b.pth"
    PUBLISHED: ClassVar[Sequence[str]] = tuple(PUBLISHED)
    SAMPLING: ClassVar[type] = HarmonSampling

    def __init__(self, config: HarmonConfig, options: ModelConfig, tokenizer: HarmonTokenizer | None = None) -> None:
        if options.condition == "generation":
            raise UserError(
                "model.condition is generation; Harmon has one encoder for understanding and generation, and its "
                "language model takes no bare latents: set --model.condition auto."
            )
        self.config, self.options, self.folder = config, options, Path(options.path)
        self.dtype = DTYPES[options.precision]
        self._tokenizer = tokenizer
        with torch.device("meta"):
            self.module = Harmon(config)
        self.encoders = HarmonEncoders(config)

    @property
    def drawn_side(self) -> int:
        """Twice the side of the position tables: 512 for the public models."""
        return 2 * self.config.mar.img_size

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """By a file of the authors' name, or by a file of weights with MAR's tensors."""
        names = found_weights(folder)
        if any(map(is_authors, names)):
            return True
        return any(holds_mar(folder / name) for name in names)

    @classmethod
    def open(cls, options: ModelConfig) -> "HarmonModel":
        folder = Path(options.path)
        config = HarmonConfig.from_folder(folder, shapes_of(weights_file(folder, options.weights)))
        return cls(config, options, open_tokenizer(folder, config.llm.vocab_size))

    @classmethod
    def published(cls, name: str, options: ModelConfig) -> "HarmonModel | None":
        return cls(PUBLISHED[name], options, PUBLISHED_TOKENIZER) if name in PUBLISHED else None

    @classmethod
    def case(cls, folder: Path) -> Case | None:
        recorded = RecordedCase.open(folder)
        return None if recorded is None else HarmonCase(recorded, cls)

    @classmethod
    def check(cls, folder: Path, weights: str = "auto") -> str:
        model = cls.open(ModelConfig(path=str(folder), weights=weights, freeze_und=False))
        path = model.weights
        with open_sharded(path) as stored:
            check_weights(model.module, stored)
            check_head(stored)
            tensors = f"{len(stored.shapes)} tensors in {path.name}"
        model.encoders.fill(folder, path, "cpu")
        for each in dict.fromkeys((*weight_files(path), *weight_files(vae_place(folder, path)[0]))):
            check_finite(each)
        numbers = sum(p.numel() for p in model.module.parameters())
        return f"{folder}: a whole Harmon checkpoint, {tensors}, {numbers / 1e9:.3f} G parameters."

    @property
    def tokenizer(self) -> HarmonTokenizer:
        assert self._tokenizer is not None, "this model was made without a tokenizer"
        return self._tokenizer

    @property
    def weights(self) -> Path:
        """The file that the module's weights are read from."""
        return weights_file(self.folder, self.options.weights)

    @property
    def device(self) -> torch.device:
        """Where the module is; the meta device before it has weights."""
        return self.module.mar.fake_latent.device

    def files(self) -> Sequence[Path]:
        beside = (self.folder / name for name in (VAE_FILE, "config.json", *TOKENIZER_FILES))
        index = [self.weights] if self.weights.name.endswith(INDEX) else []
        return [path for path in (*weight_files(self.weights), *index, *beside) if path.is_file()]

    def says_weights(self) -> str:
        return f"weights: {self.weights}"

    def blocks(self) -> Sequence[nn.Module]:
        return self.module.blocks()

    def decays(self, name: str) -> bool:
        """As the authors have it: everything with two or more axes, tables and embeddings too, but the denoiser."""
        return ".diffloss." not in name and self.module.get_parameter(name).ndim > 1

    def fill(self, place: Place) -> None:
        self._choose_operations(place)
        with open_sharded(self.weights) as stored:
            check_weights(self.module, stored)
            fill(self.module, stored, place, NETWORK_NAMES)

    def fill_empty(self, place: Place) -> None:
        device = self._choose_operations(place)
        fill(self.module, EmptyWeights(self.module), place)
        self.encoders.fill_empty(device)

    def _choose_operations(self, place: Place) -> torch.device:
        """Choose how the device that `place` names computes; that device."""
        device = torch.device(place("mar.fake_latent", self.module.mar.fake_latent).device)
        self.module.attention = choose_operations(self.options, device, self.dtype)
        return device

    def fill_encoders(self, device: torch.device) -> None:
        self.encoders.fill(self.folder, self.weights, device)

    def drop_encoders(self) -> None:
        self.encoders = HarmonEncoders(self.config)

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def inputs(self, config: DataConfig) -> HarmonInputs:
        if self.options.freeze_und:
            raise UserError(
                "model.freeze_und is true; Harmon understands and draws with the same weights, so there is no "
                "understanding side to freeze: set --model.freeze_und false."
            )
        return HarmonInputs(self.config, self.tokenizer, config)

    def autocast(self, *, keep_casts: bool = False) -> AbstractContextManager[object]:
        """A context in which arithmetic has the model's dtype (bf16, say) though the weights are fp32.

        Args:
            keep_casts: keep the narrow copies of the weights until the context ends. Sampling uses them in every step;
                a training step uses each weight once.
        """
        if self.module.mar.fake_latent.dtype == self.dtype:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, cache_enabled=keep_casts)

    def encode(self, batch: HarmonBatch) -> HarmonBatch:
        return self.encoders.encode(batch, self.dtype)

    def encode_condition(self, picture: Tensor) -> dict[str, Tensor]:
        return {LATENTS: self.encoders.latents(picture, self.dtype)}

    def encode_target(self, picture: Tensor) -> dict[str, Tensor]:
        return {LATENTS: self.encoders.latents(picture, self.dtype)}

    def identity_of_encoders(self) -> dict[str, str]:
        return self.encoders.identity(self.folder, self.weights)

    def loss_sums(self, batch: HarmonBatch) -> dict[str, Tensor]:
        """Add the batch's noise to the latents of the hidden tokens, predict it, and sum the losses by task; and the
        cross-entropy of what is said.

        Args:
            batch: encoded, on the model's device.

        Raises:
            ValueError: the batch holds pictures that were not encoded.
        """
        if batch.latents is None:
            raise ValueError("the batch is not encoded; encode() comes first")
        noise = {"seed": batch.noise_seed} if batch.noise is None else {"noise": batch.noise}
        copies = len(batch.timesteps) // max(1, len(batch.decoder.latents))
        clean = batch.latents.index_select(0, batch.decoder.latents).repeat(copies, 1)
        with self.autocast():
            x_t = mar_noise(clean, batch.timesteps, **noise) if len(clean) else clean
            prediction: Prediction = self.module(batch, batch.latents, x_t)
        sums: dict[str, Tensor] = {}
        if len(batch.predicted) == 1:
            (task,) = batch.predicted
            sums[task] = mar_diffusion_loss(prediction.noise, clean, batch.timesteps, **noise, reduction="sum")
        elif batch.predicted:
            rows = mar_diffusion_loss(prediction.noise, clean, batch.timesteps, **noise, reduction="none")
            parts = rows.view(copies, -1).split(list(batch.predicted.values()), dim=1)
            sums = {task: part.sum() for task, part in zip(batch.predicted, parts, strict=True)}
        if len(batch.language.labels):
            with self.autocast():
                head = self.module.llm.embed_tokens.weight
                sums[I2T] = next_token_loss(prediction.said, head, batch.language.labels, "sum")
            if not batch.predicted:
                sums[I2T] = sums[I2T] + prediction.noise.float().sum()  # zero: it ties the denoiser to the loss
        return sums

    def flops(self, batch: HarmonBatch) -> float:
        return step_flops(self.config, batch)

    @torch.no_grad()
    def sample(
        self, conditions: Sequence[Sample], sizes: Sequence[Size], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> list[Tensor]:
        stride = self.config.mar.stride
        check_sampling(sampling)
        settings = sampling.filled(HarmonSampling)
        for width, height in sizes:
            if min(width, height) < 1 or width % stride or height % stride:
                raise UserError(
                    f"A picture of {width} x {height} cannot be drawn: both sides must be multiples of {stride}."
                )
        unguided = Prefix(self.tokenizer.prompt(None, seen=False))

        def draw(numbers: list[int]) -> list[Tensor]:
            grid, chances = grid_of(sizes[numbers[0]], stride), [Seeded(seeds[i]) for i in numbers]
            prefixes = [self._prefix(conditions[i]) for i in numbers]
            with self.autocast(keep_casts=True):
                latents = sample_latents(self.module, prefixes, unguided, grid, settings, chances)
            return [self._picture(tokens, grid) for tokens in latents]

        return draw_together(sizes, sampling.together, draw)

    def _picture(self, tokens: Tensor, grid: Grid) -> Tensor:
        """The picture uint8 [H, W, 3] of latents [tokens, C], on the CPU."""
        drawn = self.encoders.pictures(tokens, grid, self.dtype)
        # Fractions of a grey level are cut off, not rounded, as the authors do it.
        grey = (127.5 * drawn + 128).clamp(0, 255).to(torch.uint8)
        return grey.permute(1, 2, 0).cpu()

    def _prefix(self, sample: Sample) -> Prefix:
        """What a picture is drawn from."""
        seen, stride = sample.condition, self.config.mar.stride
        prompt = self.tokenizer.prompt(sample.text, seen=seen is not None, training=False)
        if seen is None:
            return Prefix(prompt)
        height, width, _ = seen.shape
        if height % stride or width % stride:
            raise UserError(
                f"A condition of {width} x {height} cannot be encoded: both sides must be multiples of {stride}."
            )
        latents = self.encoders.latents(seen.to(self.device), self.dtype)
        return Prefix(prompt, latents, (height // stride, width // stride))

    def frozen(self) -> Sequence[FrozenPart]:
        return frozen_parts(self.module, self.config, self.folder, self.weights)

    def understanding(self) -> Tensor:
        return understanding_logits(self.config, self.tokenizer, self.folder, self.weights)

    def export(self, folder: Path, weights: Mapping[str, Change], dtype: torch.dtype | None) -> list[str]:
        vae_place(self.folder, self.weights)  # raises for a base without a VAE, which the authors' code needs
        return export_folder(self.folder, folder, self.config, weights, dtype, self.weights)
