"""OpenUni behind the protocol that every model keeps (`reca_fast.models.protocol.Model`)."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from reca_fast.config import DataConfig, ModelConfig, SamplingConfig
from reca_fast.data.inputs import Size
from reca_fast.errors import UserError
from reca_fast.kernels import flow_interpolate
from reca_fast.models.choices import DTYPES, choose_operations
from reca_fast.models.files import Change, EmptyWeights, Place, Weights, check_finite, check_fit, fill, open_weights
from reca_fast.models.parts.host_table import tables_on_host
from reca_fast.models.protocol import Case, FrozenPart
from reca_fast.models.together import draw_together
from reca_fast.objectives import flow_loss_by_task
from reca_fast.sample import RECA, Sample

from .batch import FEATURES, LATENTS, TIMES, OpenUniBatch, make_batch, to_cells, to_pictures
from .cases import OpenUniCase, RecordedCase
from .config import PUBLISHED, OpenUniConfig
from .dcae import DECODER_NAMES, ENCODER_NAMES, empty_half
from .encoders import OpenUniEncoders
from .export import export_folder
from .flops import step_flops
from .folder import LLM, OWN, OpenUniFolder
from .inputs import OpenUniInputs
from .names import NETWORK_NAMES, VIT_NAMES
from .network import OpenUni
from .sampling import OpenUniSampling, Velocity, draw_latents
from .sana import Group
from .tokenizer import PUBLISHED_TOKENS, OpenUniTokenizer, open_tokenizer
from .understanding import frozen_parts, understanding_logits

Asked = tuple[Tensor | None, Sequence[int] | None]
"""What a picture is drawn from: the one behind which it stands, uint8 [H, W, 3], and the token ids of a text."""


class OpenUniModel:
    """One OpenUni: the network (`module`), and beside it the frozen encoders and the tokenizer. The methods are those
    of `reca_fast.models.protocol.Model`.

    Args:
        config: sizes of the model.
        options: `options.path` is the checkpoint folder; methods that read no files work without it.
        tokenizer: of the prompts.

    Raises:
        UserError: an option does not fit the model.
    """

    MARK: ClassVar[str] = "internvl3/config.json"
    PUBLISHED: ClassVar[Sequence[str]] = tuple(PUBLISHED)
    SAMPLING: ClassVar[type] = OpenUniSampling

    def __init__(self, config: OpenUniConfig, options: ModelConfig, tokenizer: OpenUniTokenizer) -> None:
        if not options.freeze_und:
            raise UserError("OpenUni's language model is always frozen: set --model.freeze_und true.")
        if options.condition == "generation":
            raise UserError(
                "OpenUni's prompts take InternVL's embeddings of a picture alone: set --model.condition understanding."
            )
        self.config, self.options, self.tokenizer = config, options, tokenizer
        self.dtype = DTYPES[options.precision]
        with torch.device("meta"):
            self.module = OpenUni(config)
        self.encoders = OpenUniEncoders(config)

    @property
    def drawn_side(self) -> int:
        """What SANA's config.json says it was made for: 512 or 1024 for the public models."""
        return self.config.sana.sample_size * self.config.stride

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return (folder / LLM).is_dir() or any(folder.glob(OWN))

    @classmethod
    def open(cls, options: ModelConfig) -> "OpenUniModel":
        folder = OpenUniFolder.find(Path(options.path), options.weights)
        config = folder.config()
        return cls(config, options, open_tokenizer(folder.path / LLM, config.llm.vocab_size))

    @classmethod
    def published(cls, name: str, options: ModelConfig) -> "OpenUniModel | None":
        return cls(PUBLISHED[name], options, PUBLISHED_TOKENS) if name in PUBLISHED else None

    @classmethod
    def case(cls, folder: Path) -> Case | None:
        recorded = RecordedCase.open(folder)
        return None if recorded is None else OpenUniCase(recorded, cls)

    @classmethod
    def check(cls, folder: Path, weights: str = "auto") -> str:
        model = cls.open(ModelConfig(path=str(folder), weights=weights))
        halves = {"encoder": ENCODER_NAMES, "decoder": DECODER_NAMES}
        vae = [(empty_half(model.config.vae, half), names) for half, names in halves.items()]
        with model.folder.weights() as stored:
            check_fit(stored, (model.module, NETWORK_NAMES), (model.encoders.vit, VIT_NAMES), *vae)
            count, files = len(stored.shapes), {p.weights.path for pieces in stored.sources.values() for p in pieces}
        for path in files:
            check_finite(path)
        parts = (model.module, model.encoders.vit, *(half for half, _ in vae))
        numbers = sum(p.numel() for part in parts for p in part.parameters())
        return (
            f"{folder}: a whole OpenUni checkpoint, {count} tensors, {numbers / 1e9:.3f} G parameters; "
            f"{model.folder.own.name} holds what was trained."
        )

    @property
    def folder(self) -> OpenUniFolder:
        """The checkpoint folder. Raises UserError where something of it is missing."""
        return OpenUniFolder.find(Path(self.options.path), self.options.weights)

    def weights(self) -> Weights:
        """All weights under the names of the authors' file; without a folder, `options.weights` is a file of all."""
        return self.folder.weights() if self.options.path else open_weights(Path(self.options.weights))

    @property
    def device(self) -> torch.device:
        """Where the module is; the meta device before it has weights."""
        return self.module.meta_queries.device

    def files(self) -> Sequence[Path]:
        return self.folder.files()

    def says_weights(self) -> str:
        return f"weights: {self.folder.own}, on the public models beside it"

    def blocks(self) -> Sequence[nn.Module]:
        return self.module.blocks()

    def decays(self, name: str) -> bool:
        """As the authors have it: whatever has two dimensions or more, queries and tables of scales included."""
        return not name.endswith(".bias") and "norm" not in name

    def fill(self, place: Place) -> None:
        self._choose_operations(place)
        with self.weights() as weights:
            fill(self.module, weights, tables_on_host(self.module, place), NETWORK_NAMES)

    def fill_empty(self, place: Place) -> None:
        device = self._choose_operations(place)
        fill(self.module, EmptyWeights(self.module), tables_on_host(self.module, place))
        self.encoders.fill_empty(self.dtype, device)

    def _choose_operations(self, place: Place) -> torch.device:
        """Choose how the device that `place` names computes; that device."""
        device = torch.device(place("meta_queries", self.module.meta_queries).device)
        self.module.attention = choose_operations(self.options, device, self.dtype)
        return device

    def fill_encoders(self, device: torch.device) -> None:
        self.module.attention = choose_operations(self.options, device, self.dtype)
        with self.weights() as weights:
            self.encoders.fill(weights, self.dtype, device)

    def drop_encoders(self) -> None:
        self.encoders = OpenUniEncoders(self.config)

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def inputs(self, config: DataConfig) -> OpenUniInputs:
        return OpenUniInputs(self.config, self.tokenizer, config)

    def autocast(self, *, keep_casts: bool = False) -> AbstractContextManager[object]:
        """A context in which arithmetic has the model's dtype (bf16, say) though the weights are fp32.

        Args:
            keep_casts: keep the narrow copies of the weights until the context ends. Sampling uses them in every step.
        """
        trained = {p.dtype for p in self.module.parameters() if p.requires_grad}
        if trained | {self.module.meta_queries.dtype} == {self.dtype}:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, cache_enabled=keep_casts)

    def encode(self, batch: OpenUniBatch) -> OpenUniBatch:
        return self.encoders.encode(batch, self.module.attention)

    @torch.no_grad()
    def encode_condition(self, picture: Tensor) -> dict[str, Tensor]:
        return {FEATURES: self.encoders.features(picture, self.module.attention)}

    @torch.no_grad()
    def encode_target(self, picture: Tensor) -> dict[str, Tensor]:
        """Its latents, and its features as well: it may be the condition too."""
        return {LATENTS: self.encoders.latents(picture)} | self.encode_condition(picture)

    def identity_of_encoders(self) -> dict[str, str]:
        with self.weights() as weights:
            return self.encoders.identity(weights)

    def loss_sums(self, batch: OpenUniBatch) -> dict[str, Tensor]:
        """Add the batch's noise to its latents, predict the velocities, and sum the losses by task.

        Args:
            batch: encoded, on the model's device.

        Raises:
            ValueError: the batch holds pictures that were not encoded.
        """
        draws, latents = batch.draws, batch.latents
        assert draws is not None, "a training batch holds its draws"
        if latents is None:
            raise ValueError("the batch is not encoded; encode() comes first")
        # With a seed, the noise is a function of it, the number of the cell and the channel: the same on every device.
        noise = {"seed": draws.noise_seed} if draws.noise is None else {"noise": draws.noise}
        times = draws.timesteps / TIMES
        with self.autocast():
            x_t = flow_interpolate(latents, times[batch.target_index], **noise)
            velocity = self.module(batch, x_t, draws.timesteps)
        return flow_loss_by_task(velocity, latents, times, batch.target_index, batch.target_tasks, **noise)

    def flops(self, batch: OpenUniBatch) -> float:
        return step_flops(self.config, batch)

    @torch.no_grad()
    def sample(
        self, conditions: Sequence[Sample], sizes: Sequence[Size], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> list[Tensor]:
        settings = sampling.filled(OpenUniSampling)
        for width, height in sizes:
            if width % self.config.stride or height % self.config.stride or min(width, height) <= 0:
                raise UserError(
                    f"A picture of {width} x {height} cannot be drawn: both sides must be multiples of "
                    f"{self.config.stride}."
                )
        if self.encoders.decoder is None:
            with self.weights() as weights:
                self.encoders.fill_decoder(weights, self.device)
        asked = [_asked(sample) for sample in conditions]
        kinds = [(size, picture is None) for (picture, _), size in zip(asked, sizes, strict=True)]

        def draw(numbers: list[int]) -> Sequence[Tensor]:
            return self._draw(
                [asked[i] for i in numbers], sizes[numbers[0]], settings, [seeds[i] for i in numbers]
            ).unbind()

        return draw_together(kinds, sampling.together, draw)

    def _draw(self, asked: Sequence[Asked], size: Size, settings: OpenUniSampling, seeds: Sequence[int]) -> Tensor:
        """Pictures of one size, uint8 [pictures, H, W, 3] on the CPU, all of them behind a picture or none."""
        shape = size[1] // self.config.stride, size[0] // self.config.stride
        conditions = tuple(picture for picture, _ in asked if picture is not None)
        guidance = settings.image_guidance if conditions else settings.guidance
        if conditions:
            prompts = [self.tokenizer.about_picture(self.config.picture_tokens, ids) for _, ids in asked]
        else:
            prompts = [self.tokenizer.request(ids) for _, ids in asked]
        groups, context = self._context(prompts, shape, conditions)
        contexts = [context]
        if guidance > 1:
            _, unguided = self._context([self.tokenizer.request(None)], shape, ())  # the same for all of them
            contexts.append(unguided.repeat(len(asked), 1))
        noise = torch.stack([self._noise(shape, seed) for seed in seeds]).to(self.device)
        with self.autocast(keep_casts=True):
            velocity = self._velocity(groups, contexts, guidance)
            cells = draw_latents(velocity, to_cells(noise), settings.steps, settings.timestep_shift)
        return self.encoders.pictures(to_pictures(cells, *shape)).cpu()

    def _noise(self, shape: tuple[int, int], seed: int) -> Tensor:
        """What one picture starts from, fp32 [C, rows, columns] on the CPU."""
        return torch.randn(self.config.sana.in_channels, *shape, generator=torch.Generator().manual_seed(seed))

    def _context(
        self, prompts: Sequence[Sequence[int]], shape: tuple[int, int], conditions: tuple[Tensor, ...]
    ) -> tuple[tuple[Group, ...], Tensor]:
        """The pictures to be drawn, and the context that their prompts give SANA."""
        shapes, tasks = [shape] * len(prompts), [RECA] * len(prompts)
        queries, picture = self.config.num_queries, self.tokenizer.picture
        batch = make_batch(prompts, shapes, queries, picture, tasks=tasks, conditions=conditions)
        batch = self.encode(batch.to(self.device))
        with self.autocast():
            return batch.groups, self.module.context(batch)

    def _velocity(self, groups: Sequence[Group], contexts: Sequence[Tensor], guidance: float) -> Velocity:
        """The velocity as fp32 cells; with two contexts, led away from the second one."""

        def velocity(x: Tensor, time: float) -> Tensor:
            timesteps = torch.full((sum(group.pictures for group in groups),), time, device=x.device)
            found: list[Tensor] = [
                self.module.sana(x, context, timesteps, groups, self.module.attention).float() for context in contexts
            ]
            return found[0] if len(found) == 1 else found[1] + guidance * (found[0] - found[1])

        return velocity

    def frozen(self) -> Sequence[FrozenPart]:
        return frozen_parts(self.folder)

    def understanding(self) -> Tensor:
        return understanding_logits(self.config, self.tokenizer, self.folder)

    def export(self, folder: Path, weights: Mapping[str, Change], dtype: torch.dtype | None) -> list[str]:
        with torch.device("meta"):
            module = OpenUni(self.config)
        return export_folder(self.folder, folder, module, weights, dtype)


def _asked(sample: Sample) -> Asked:
    """A sample of reca whose condition is the very picture that it has as its target holds it once."""
    condition = sample.target if sample.condition is None and RECA in sample.tasks else sample.condition
    return condition, None if sample.text is None else sample.text.ids
