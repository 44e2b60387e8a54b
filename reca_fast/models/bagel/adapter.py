"""What the trainer needs of BAGEL: loading, collating, the loss of a batch, sampling, export."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from reca_fast.config import DataConfig, ModelConfig, SamplingConfig
from reca_fast.data.samples import SampleBuilder
from reca_fast.errors import UserError
from reca_fast.flow import I2T, Sample
from reca_fast.kernels import choose_backend, flow_interpolate, implementation, kernels, to_device, use_kernels
from reca_fast.models.files import Placement, check_finite, open_weights
from reca_fast.models.parts.kl_vae import KLVAE, encode_pictures, read_kl_vae
from reca_fast.objectives import flow_loss_by_task, next_token_loss, shifted_logit_normal

from .batch import BagelBatch
from .collate import collate
from .config import CONFIG_FILES, BagelConfig
from .export import export_folder
from .flops import step_flops
from .latent_tokens import patchify_latents, unpatchify_latents
from .model import Bagel
from .sampling import Condition, sample_latents
from .tokenizer import TOKENIZER_FILES, open_tokenizer
from .weights import check_weights, fill_bagel, missing_tables, weights_file

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class BagelAdapter:
    """One BAGEL checkpoint folder. `module` is the decoder with its vision tower; the VAE stays beside it, frozen."""

    def __init__(self, options: ModelConfig) -> None:
        self.options, self.folder = options, Path(options.path)
        self.config = BagelConfig.from_folder(self.folder)
        self.weights = weights_file(self.folder, options.weights)
        self.dtype = DTYPES[options.precision]
        self.tokenizer = open_tokenizer(self.folder, self.config.llm.vocab_size)
        with torch.device("meta"):
            self.module = Bagel(self.config, freeze_und=options.freeze_und)
        self.vae: KLVAE | None = None
        self.device = torch.device("meta")

    def files(self) -> Sequence[Path]:
        beside = (self.folder / name for name in ("ae.safetensors", *CONFIG_FILES, *TOKENIZER_FILES))
        return [path for path in (self.weights, *beside) if path.is_file()]

    def says_weights(self) -> str:
        missing = " and ".join(missing_tables(self.weights))
        note = f", which lacks {missing} (computed here; `reca-fast export` writes them)" if missing else ""
        return f"weights: {self.weights}{note}"

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.module.layers)

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
        self.device = device

    def sample_builder(self, config: DataConfig) -> SampleBuilder:
        return SampleBuilder(config, self.tokenizer.encode, self.config.vit.patch_size, self.config.latent_stride)

    def collate(self, samples: list[Sample]) -> BagelBatch:
        return collate(samples, self.config, self.tokenizer)

    def autocast(self, *, keep_casts: bool = False) -> AbstractContextManager:
        """bf16 arithmetic over fp32 master weights, or nothing.

        Args:
            keep_casts: keep the weights' bf16 copies until the context ends. A forward pass uses every weight once, so
                that would hold 13 GB at BAGEL's size that recomputation has just set free; sampling uses them in every
                step.
        """
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, cache_enabled=keep_casts)

    def loss_sums(self, batch: BagelBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Encode the targets, noise them, predict, and sum the losses by task.

        Randomness is drawn in a fixed order on the CPU: timesteps, the seed of the noise, VAE posterior. The noise is a
        function of that seed, the token's place in the pack and the channel. So a step draws the same on every device
        and for every number of processes.
        """
        pictures = len(batch.latent_shapes)
        normal = torch.randn(pictures, generator=generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        timesteps = to_device(shifted_logit_normal(normal, self.config.glue.timestep_shift), self.device)
        with self.autocast():
            latents = self.encode_targets(batch, generator)
            x_t = flow_interpolate(latents, timesteps[batch.image_index], seed=seed)
            prediction = self.module(batch, x_t, timesteps)
        sums = flow_loss_by_task(
            prediction.velocity, latents, timesteps, batch.image_index, batch.target_tasks, seed=seed
        )
        if not self.options.freeze_und:
            # Also without labels or without pictures, so that every trained weight has a gradient (see MoTLayer).
            rows = prediction.und if batch.label_rows is None else prediction.und[batch.label_rows]
            labels = batch.text_ids[:0] if batch.labels is None else batch.labels
            with self.autocast():
                sums[I2T] = next_token_loss(rows, self.module.lm_head.weight, labels, "sum")
            if not pictures:
                sums[I2T] = sums[I2T] + prediction.velocity.sum()  # of no rows: zero, but in the graph
        return sums

    def encode_targets(self, batch: BagelBatch, generator: torch.Generator) -> Tensor:
        """Latent tokens [G, C] fp32 of the batch's target pictures, sampled from the VAE's posterior."""
        assert self.vae is not None, "load() comes first"
        latents = encode_pictures(self.vae, batch.target_images, generator)
        tokens = [patchify_latents(z, self.config.glue.latent_patch_size) for z in latents]
        return torch.cat(tokens) if tokens else torch.zeros(0, self.config.patch_latent_dim, device=self.device)

    def flops(self, batch: BagelBatch) -> float:
        return step_flops(self.config, batch, frozen=self.options.freeze_und)

    def reconstruct(self, samples: Sequence[Sample], sampling: SamplingConfig, first: int = 0) -> list[Tensor]:
        stride = self.config.latent_stride
        conditions = [(sample.vit_image, sample.prompt_ids) for sample in samples]
        sizes = [s.vae_image.shape for s in samples if s.vae_image is not None]
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
            tokens = sample_latents(self.module, self.tokenizer, conditions, shapes, sampling, first)
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
