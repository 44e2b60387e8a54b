"""What the trainer needs of BAGEL: loading, collating, the loss of a batch, sampling, export."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from reca_fast.config import DataConfig, ModelConfig, SamplingConfig
from reca_fast.errors import UserError
from reca_fast.kernels import choose_backend, flow_interpolate, implementation, kernels, use_kernels
from reca_fast.models.files import Placement, check_finite, open_weights
from reca_fast.models.parts.kl_vae import KLVAE, encode_pictures, read_kl_vae
from reca_fast.objectives import flow_loss_by_task, next_token_loss
from reca_fast.sample import I2T, Sample

from .batch import BagelBatch
from .config import CONFIG_FILES, BagelConfig
from .export import export_folder
from .flops import step_flops
from .inputs import BagelInputs
from .latent_tokens import patchify_latents, unpatchify_latents
from .model import Bagel
from .sampling import Condition, sample_latents
from .tokenizer import TOKENIZER_FILES, BagelTokenizer, open_tokenizer
from .weights import check_weights, fill_bagel, missing_tables, weights_file

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class BagelAdapter:
    """One BAGEL. `module` is the decoder with its vision tower; the VAE stays beside it, frozen.

    Args:
        config: architecture.
        options: what of it is trained, and how. `options.path` is the checkpoint folder; only what reads files needs
            it.
        tokenizer: only what reads texts needs one.
    """

    def __init__(self, config: BagelConfig, options: ModelConfig, tokenizer: BagelTokenizer | None = None) -> None:
        self.config, self.options, self.folder = config, options, Path(options.path)
        self.dtype = DTYPES[options.precision]
        self._tokenizer = tokenizer
        with torch.device("meta"):
            self.module = Bagel(config, freeze_und=options.freeze_und)
        self.vae: KLVAE | None = None

    @classmethod
    def open(cls, options: ModelConfig) -> "BagelAdapter":
        """The model of the checkpoint folder `options.path`; its configuration and its tokenizer are read.

        Raises:
            UserError: a file is missing or damaged.
        """
        folder = Path(options.path)
        config = BagelConfig.from_folder(folder)
        weights_file(folder, options.weights)  # raises before the tokenizer, which takes seconds
        return cls(config, options, open_tokenizer(folder, config.llm.vocab_size))

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
        beside = (self.folder / name for name in ("ae.safetensors", *CONFIG_FILES, *TOKENIZER_FILES))
        return [path for path in (self.weights, *beside) if path.is_file()]

    def says_weights(self) -> str:
        missing = " and ".join(missing_tables(self.weights))
        note = f", which lacks {missing} (computed here; `reca-fast export` writes them)" if missing else ""
        return f"weights: {self.weights}{note}"

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.module.layers)

    def decays(self, name: str) -> bool:
        """The authors train without weight decay; what has it otherwise are the matrices of the linear layers."""
        return name.endswith(".weight") and "norm" not in name and not name.startswith("embed_tokens.")

    def load(self, device: torch.device) -> None:
        """Weights to `device`: trained ones in fp32, frozen ones in the precision of the run; then the VAE (fp32)."""
        try:
            self.module.attention = choose_backend(self.options.attention, device, self.dtype)
            with kernels(self.options.kernels):
                implementation(torch.empty(0, device=device))  # raises before anything is chosen
            use_kernels(self.options.kernels)
        except ValueError as error:
            raise UserError(f"{error}; `reca-fast doctor` shows what this machine can run.") from None
        fill_bagel(
            self.module,
            self.weights,
            lambda name, p: Placement(torch.float32 if p.requires_grad else self.dtype, device),
        )
        self.vae = read_kl_vae(self.folder / "ae.safetensors", self.config.vae, device=device)

    def inputs(self, config: DataConfig) -> BagelInputs:
        return BagelInputs(self.config, self.tokenizer, config)

    def autocast(self, *, keep_casts: bool = False) -> AbstractContextManager:
        """bf16 arithmetic over fp32 master weights; nothing where the weights have the arithmetic's dtype.

        Args:
            keep_casts: keep the weights' bf16 copies until the context ends. A forward pass uses every weight once, so
                that would hold 13 GB at BAGEL's size that recomputation has just set free; sampling uses them in every
                step.
        """
        if self.dtype == self.module.llm2vae.weight.dtype:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, cache_enabled=keep_casts)

    @torch.no_grad()
    def encode(self, batch: BagelBatch) -> BagelBatch:
        """The batch with the latent tokens of its targets in place of their pictures."""
        if batch.latents is not None or not batch.target_tasks:
            return batch
        with self.autocast():
            return replace(batch, latents=self._encode_targets(batch), target_images=())

    def _encode_targets(self, batch: BagelBatch) -> Tensor:
        """Latent tokens [G, C] fp32 of the batch's target pictures, sampled from the VAE's posterior."""
        assert self.vae is not None, "load() comes first"
        assert batch.draws is not None, "a training batch holds its draws"
        latents = encode_pictures(self.vae, batch.target_images, batch.draws.posterior)
        return torch.cat([patchify_latents(z, self.config.glue.latent_patch_size) for z in latents])

    def loss_sums(self, batch: BagelBatch) -> dict[str, Tensor]:
        """Noise the targets' latents as the batch has drawn it, predict, and sum the losses by task.

        Args:
            batch: an encoded one, on the model's device.
        """
        draws, latents = batch.draws, batch.latents
        assert draws is not None, "a training batch holds its draws"
        if latents is None:
            if batch.target_tasks:
                raise ValueError("the batch is not encoded; encode() comes first")
            latents = draws.timesteps.new_zeros(0, self.config.patch_latent_dim)
        # The noise is a function of the seed, the token's place in the pack and the channel: the same on every device.
        noise = {"seed": draws.noise_seed} if draws.noise is None else {"noise": draws.noise}
        with self.autocast():
            x_t = flow_interpolate(latents, draws.timesteps[batch.image_index], **noise)
            prediction = self.module(batch, x_t, draws.timesteps)
        sums = flow_loss_by_task(
            prediction.velocity, latents, draws.timesteps, batch.image_index, batch.target_tasks, **noise
        )
        if not self.options.freeze_und:
            # Also without labels or without pictures, so that every trained weight has a gradient (see MoTLayer).
            rows = prediction.und if batch.label_rows is None else prediction.und[batch.label_rows]
            labels = batch.text_ids[:0] if batch.labels is None else batch.labels
            with self.autocast():
                sums[I2T] = next_token_loss(rows, self.module.lm_head.weight, labels, "sum")
            if not batch.target_tasks:
                sums[I2T] = sums[I2T] + prediction.velocity.sum()  # of no rows: zero, but in the graph
        return sums

    def flops(self, batch: BagelBatch) -> float:
        return step_flops(self.config, batch, frozen=self.options.freeze_und)

    def reconstruct(self, samples: Sequence[Sample], sampling: SamplingConfig, first: int = 0) -> list[Tensor]:
        stride = self.config.latent_stride
        conditions = [(sample.condition, None if sample.text is None else sample.text.ids) for sample in samples]
        sizes = [s.target.shape for s in samples if s.target is not None]
        shapes = [(height // stride, width // stride) for height, width, _ in sizes]
        return self._draw(conditions, shapes, sampling, first)

    def generate(
        self, prompts: Sequence[str], size: tuple[int, int], sampling: SamplingConfig, first: int = 0
    ) -> list[Tensor]:
        stride, side = self.config.latent_stride, self.config.glue.max_latent_size
        if size[0] % stride or size[1] % stride or not 0 < min(size) <= max(size) <= side * stride:
            raise UserError(
                f"A picture of {size[0]} x {size[1]} cannot be drawn: both sides must be multiples of {stride} "
                f"and at most {side * stride}."
            )
        conditions: list[Condition] = [(None, self.tokenizer.encode(prompt)) for prompt in prompts]
        return self._draw(conditions, [(size[1] // stride, size[0] // stride)] * len(prompts), sampling, first)

    @torch.no_grad()
    def _draw(
        self, conditions: Sequence[Condition], shapes: Sequence[tuple[int, int]], sampling: SamplingConfig, first: int
    ) -> list[Tensor]:
        assert self.vae is not None, "load() comes first"
        with self.autocast(keep_casts=True):
            seeds = [sampling.seed + first + number for number in range(len(conditions))]
            tokens = sample_latents(self.module, self.tokenizer, conditions, shapes, sampling, seeds)
            patch, channels = self.config.glue.latent_patch_size, self.config.latent_channels
            pictures = [
                self.vae.decode(unpatchify_latents(x, rows, columns, patch, channels)[None])[0]
                for x, (rows, columns) in zip(tokens, shapes, strict=True)
            ]
        # Cut to whole grey levels, not rounded: as the authors do.
        return [((p.float() * 0.5 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).cpu() for p in pictures]

    def export(self, folder: Path, weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> list[str]:
        if not os.path.lexists(self.folder / "ae.safetensors"):
            raise UserError(
                f"{self.folder / 'ae.safetensors'} is missing; the authors' code needs it beside the weights."
            )
        return export_folder(self.folder, folder, self.config, weights, dtype, self.weights)


def check_checkpoint(folder: Path, weights: str = "auto") -> str:
    """Read a checkpoint folder strictly, names, shapes and numbers of its weights; one line that says what it holds.

    Args:
        weights: the file of weights, as `weights_file` takes it.

    Raises:
        UserError: anything missing, unexpected or misshapen, NaN or infinite numbers.
    """
    config = BagelConfig.from_folder(folder)
    with torch.device("meta"):
        model = Bagel(config)
    path = weights_file(folder, weights)
    with open_weights(path) as file:
        check_weights(model, file)
        tensors = f"{len(file.shapes)} tensors in {path.name}"
    if missing := missing_tables(path):
        raise UserError(
            f"{path} lacks {' and '.join(missing)}, the position tables that the authors' code reads from it. Training "
            "and sampling compute them, and what `reca-fast export` writes holds them; or copy them from the public "
            "checkpoint."
        )
    open_tokenizer(folder, config.llm.vocab_size)
    read_kl_vae(folder / "ae.safetensors", config.vae, device="cpu")
    for each in (path, folder / "ae.safetensors"):
        check_finite(each)
    numbers = sum(p.numel() for p in model.parameters())
    return f"{folder}: a whole BAGEL checkpoint, {tensors}, {numbers / 1e9:.3f} G parameters."
