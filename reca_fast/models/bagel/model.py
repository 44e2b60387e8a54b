"""BAGEL behind the protocol that every model keeps (`reca_fast.models.protocol.Model`)."""

import os
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
from reca_fast.kernels import flow_interpolate
from reca_fast.models.choices import DTYPES, choose_operations
from reca_fast.models.files import Change, EmptyWeights, Place, check_finite, fill, open_weights
from reca_fast.models.parts.host_table import tables_on_host
from reca_fast.models.parts.qwen_tokenizer import TOKENIZER_FILES
from reca_fast.models.protocol import Case, FrozenPart
from reca_fast.objectives import flow_loss_by_task, next_token_loss
from reca_fast.sample import I2T, Sample

from .batch import FEATURES, MOMENTS, BagelBatch
from .cases import BagelCase, RecordedCase
from .collate import Prefix
from .config import BAGEL_7B_MOT, CONFIG_FILES, BagelConfig
from .editing import BagelEditing, edited_size, source_of
from .encoders import VAE_FILE, BagelEncoders
from .export import export_folder
from .flops import step_flops
from .inputs import BagelInputs
from .latent_tokens import unpatchify_latents
from .network import Bagel
from .sampling import BagelSampling, sample_latents
from .tokenizer import PUBLISHED_MARKERS, BagelTokenizer, open_tokenizer
from .understanding import frozen_parts, understanding_logits
from .weights import check_weights, fill_bagel, missing_tables, weights_file


class BagelModel:
    """One BAGEL: the network (`module`), and beside it the frozen encoders and the tokenizer. The methods are those of
    `reca_fast.models.protocol.Model`.

    Args:
        config: sizes of the model.
        options: `options.path` is the checkpoint folder; methods that read no files work without it.
        tokenizer: None where no text is read; `tokenize`, `inputs` and `sample` need one.
    """

    MARK: ClassVar[str] = "llm_config.json"
    PUBLISHED: ClassVar[Sequence[str]] = ("BAGEL-7B-MoT",)
    SAMPLING: ClassVar[type] = BagelSampling
    EDITING: ClassVar[type] = BagelEditing

    def __init__(self, config: BagelConfig, options: ModelConfig, tokenizer: BagelTokenizer | None = None) -> None:
        self.config, self.options, self.folder = config, options, Path(options.path)
        self.dtype, self.as_latents = DTYPES[options.precision], options.condition == "generation"
        self._tokenizer = tokenizer
        with torch.device("meta"):
            self.module = Bagel(config, freeze_und=options.freeze_und)
        self.encoders = BagelEncoders(config)

    @property
    def drawn_side(self) -> int:
        """The whole table of positions: 1024 for BAGEL-7B-MoT."""
        return self.config.latent_stride * self.config.glue.max_latent_size

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return (folder / cls.MARK).exists()

    @classmethod
    def open(cls, options: ModelConfig) -> "BagelModel":
        folder = Path(options.path)
        config = BagelConfig.from_folder(folder)
        weights_file(folder, options.weights)  # raises before the tokenizer, which takes seconds
        return cls(config, options, open_tokenizer(folder, config.llm.vocab_size))

    @classmethod
    def published(cls, name: str, options: ModelConfig) -> "BagelModel | None":
        return cls(BAGEL_7B_MOT, options, PUBLISHED_MARKERS) if name in cls.PUBLISHED else None

    @classmethod
    def case(cls, folder: Path) -> Case | None:
        recorded = RecordedCase.open(folder)
        return None if recorded is None else BagelCase(recorded, cls)

    @classmethod
    def check(cls, folder: Path, weights: str = "auto") -> str:
        return check_checkpoint(folder, weights)

    @property
    def tokenizer(self) -> BagelTokenizer:
        assert self._tokenizer is not None, "this model was made without a tokenizer"
        return self._tokenizer

    @property
    def weights(self) -> Path:
        """The file that the module's weights are read from."""
        return weights_file(self.folder, self.options.weights)

    @property
    def device(self) -> torch.device:
        """Where the module is; the meta device before it has weights."""
        return self.module.latent_pos_embed.device

    def files(self) -> Sequence[Path]:
        beside = (self.folder / name for name in (VAE_FILE, *CONFIG_FILES, *TOKENIZER_FILES))
        return [path for path in (self.weights, *beside) if path.is_file()]

    def says_weights(self) -> str:
        missing = " and ".join(missing_tables(self.weights))
        note = f", which lacks {missing} (computed here; `reca-fast export` writes them)" if missing else ""
        return f"weights: {self.weights}{note}"

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.module.layers)

    def decays(self, name: str) -> bool:
        """The authors train without weight decay; where it is asked for, it acts on the linear layers' matrices."""
        return name.endswith(".weight") and "norm" not in name and not name.startswith("embed_tokens.")

    def fill(self, place: Place) -> None:
        self._choose_operations(place)
        fill_bagel(self.module, self.weights, place)

    def fill_empty(self, place: Place) -> None:
        device = self._choose_operations(place)
        fill(self.module, EmptyWeights(self.module), tables_on_host(self.module, place))
        self.module.fill_tables(device)
        self.encoders.fill_empty(self.dtype, device)

    def _choose_operations(self, place: Place) -> torch.device:
        """Choose how the device that `place` names computes; that device."""
        device = torch.device(place("norm_gen.weight", self.module.norm_gen.weight).device)
        self.module.attention = choose_operations(self.options, device, self.dtype)
        return device

    def fill_encoders(self, device: torch.device) -> None:
        self.module.attention = choose_operations(self.options, device, self.dtype)
        self.encoders.fill_vit(self.weights, self.dtype, device)
        self.encoders.fill_vae(self.folder, device)

    def drop_encoders(self) -> None:
        self.encoders = BagelEncoders(self.config)

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def inputs(self, config: DataConfig) -> BagelInputs:
        return BagelInputs(self.config, self.tokenizer, config, self.as_latents)

    def autocast(self, *, keep_casts: bool = False) -> AbstractContextManager[object]:
        """A context in which arithmetic has the model's dtype (bf16, say) though the weights are fp32.

        Args:
            keep_casts: keep the narrow copies of the weights until the context ends. Sampling uses them in every step.
                A training step uses each weight once, so keeping them would only take memory: 13 GB at BAGEL's size.
        """
        trained = {p.dtype for p in self.module.parameters() if p.requires_grad}
        if {self.dtype} == trained | {self.module.llm2vae.weight.dtype}:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, cache_enabled=keep_casts)

    def encode(self, batch: BagelBatch) -> BagelBatch:
        return self.encoders.encode(batch, self.dtype, self.module.attention)

    @torch.no_grad()
    def encode_condition(self, picture: Tensor) -> dict[str, Tensor]:
        if self.as_latents:
            return self.encode_target(picture)
        with self.encoders.autocast(self.dtype, picture.device):
            return {FEATURES: self.encoders.features(picture, self.module.attention)}

    @torch.no_grad()
    def encode_target(self, picture: Tensor) -> dict[str, Tensor]:
        with self.encoders.autocast(self.dtype, picture.device):
            return {MOMENTS: self.encoders.moments(picture)}

    def identity_of_encoders(self) -> dict[str, str]:
        return self.encoders.identity(self.folder, self.weights)

    def loss_sums(self, batch: BagelBatch) -> dict[str, Tensor]:
        """Add the batch's noise to its latents, predict the velocities, and sum the losses by task.

        Args:
            batch: encoded, on the model's device.

        Raises:
            ValueError: the batch holds pictures that were not encoded.
        """
        draws, latents = batch.draws, batch.latents
        assert draws is not None, "a training batch holds its draws"
        if latents is None:
            if batch.target_tasks:
                raise ValueError("the batch is not encoded; encode() comes first")
            latents = draws.timesteps.new_zeros(0, self.config.patch_latent_dim)
        # With a seed, the noise is a function of it, the number of the token and the channel: the same on every device.
        noise = {"seed": draws.noise_seed} if draws.noise is None else {"noise": draws.noise}
        with self.autocast():
            x_t = flow_interpolate(latents, draws.timesteps[batch.target_index], **noise)
            prediction = self.module(batch, x_t, draws.timesteps)
        sums = flow_loss_by_task(
            prediction.velocity, latents, draws.timesteps, batch.target_index, batch.target_tasks, **noise
        )
        if not self.options.freeze_und:
            # Even without labels and without targets, so that every trained weight has a gradient (see MoTLayer).
            rows = prediction.und if batch.label_rows is None else prediction.und[batch.label_rows]
            labels = batch.und_rows[:0] if batch.labels is None else batch.labels
            with self.autocast():
                sums[I2T] = next_token_loss(rows, self.module.lm_head.weight, labels, "sum")
            if not batch.target_tasks:
                sums[I2T] = sums[I2T] + prediction.velocity.sum()  # zero, but it ties the generation side to the loss
        return sums

    def flops(self, batch: BagelBatch) -> float:
        return step_flops(self.config, batch, frozen=self.options.freeze_und)

    @torch.no_grad()
    def sample(
        self, conditions: Sequence[Sample], sizes: Sequence[Size], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> list[Tensor]:
        check_sampling(sampling)
        drawing = sampling.filled(BagelSampling)
        stride, largest = self.config.latent_stride, self.drawn_side
        for width, height in sizes:
            if width % stride or height % stride or not 0 < min(width, height) <= max(width, height) <= largest:
                raise UserError(
                    f"A picture of {width} x {height} cannot be drawn: both sides must be multiples of {stride} "
                    f"and at most {largest}."
                )
        prefixes: list[Prefix] = [(s.condition, None if s.text is None else s.text.ids) for s in conditions]
        return self._draw(prefixes, sizes, drawing, seeds, sampling.together)

    def edited_size(self, size: Size) -> Size:
        return edited_size(self.config, size)

    @torch.no_grad()
    def edit(
        self, pictures: Sequence[Tensor], instructions: Sequence[str], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> list[Tensor]:
        check_sampling(sampling)
        prefixes: list[Prefix] = [
            (source_of(self.config, picture, seed), self.tokenize(instruction))
            for picture, instruction, seed in zip(pictures, instructions, seeds, strict=True)
        ]
        sizes = [self.edited_size((picture.shape[1], picture.shape[0])) for picture in pictures]
        return self._draw(prefixes, sizes, sampling.filled(BagelEditing), seeds, sampling.together)

    def _draw(
        self,
        prefixes: Sequence[Prefix],
        sizes: Sequence[Size],
        drawing: BagelSampling,
        seeds: Sequence[int],
        together: int,
    ) -> list[Tensor]:
        """Pictures uint8 [H, W, 3] of these sizes, one from each prefix."""
        stride = self.config.latent_stride
        shapes = [(height // stride, width // stride) for width, height in sizes]
        vae, patch, channels = self.encoders.vae, self.config.glue.latent_patch_size, self.config.latent_channels
        if vae is None:
            raise ValueError("the VAE has no weights; fill_encoders() comes first")
        with self.autocast(keep_casts=True):
            tokens = sample_latents(
                *(self.module, self.tokenizer, self.encode, prefixes, shapes, drawing, seeds),
                as_latents=self.as_latents,
                together=together,
            )
        with self.encoders.autocast(self.dtype, self.device):
            pictures = [
                vae.decode(unpatchify_latents(x, rows, columns, patch, channels)[None])[0]
                for x, (rows, columns) in zip(tokens, shapes, strict=True)
            ]
        # Fractions of a grey level are cut off, not rounded, as the authors do it.
        return [((p.float() * 0.5 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).cpu() for p in pictures]

    def frozen(self) -> Sequence[FrozenPart]:
        return frozen_parts(self.module, self.encoders, self.folder, self.weights)

    def understanding(self) -> Tensor:
        return understanding_logits(self.config, self.tokenizer, self.weights)

    def export(self, folder: Path, weights: Mapping[str, Change], dtype: torch.dtype | None) -> list[str]:
        if not os.path.lexists(self.folder / VAE_FILE):
            raise UserError(f"{self.folder / VAE_FILE} is missing; the authors' code needs it beside the weights.")
        return export_folder(self.folder, folder, self.config, weights, dtype, self.weights)


def check_checkpoint(folder: Path, weights: str = "auto") -> str:
    """Read a whole checkpoint folder, names, shapes and numbers, and say in one line what it holds.

    Args:
        weights: which file of the folder holds the weights, as `ModelConfig.weights` names it.

    Raises:
        UserError: anything is missing, unexpected or misshapen, or a number is NaN or infinite.
    """
    config = BagelConfig.from_folder(folder)
    with torch.device("meta"):
        model = Bagel(config, freeze_und=False)
    encoders = BagelEncoders(config)
    path = weights_file(folder, weights)
    with open_weights(path) as file:
        check_weights(model, file, encoders.vit)
        tensors = f"{len(file.shapes)} tensors in {path.name}"
    if missing := missing_tables(path):
        raise UserError(
            f"{path} lacks {' and '.join(missing)}, the position tables that the authors' code reads from it. Training "
            "and sampling compute them, and what `reca-fast export` writes holds them; or copy them from the public "
            "checkpoint."
        )
    open_tokenizer(folder, config.llm.vocab_size)
    encoders.fill_vae(folder, "cpu")
    for each in (path, folder / VAE_FILE):
        check_finite(each)
    numbers = sum(p.numel() for part in (model, encoders.vit) for p in part.parameters())
    return f"{folder}: a whole BAGEL checkpoint, {tensors}, {numbers / 1e9:.3f} G parameters."
