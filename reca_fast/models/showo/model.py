"""Show-o behind the protocol that every model keeps (`reca_fast.models.protocol.Model`)."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca_fast.config import DataConfig, ModelConfig, SamplingConfig
from reca_fast.data.inputs import Size
from reca_fast.errors import UserError
from reca_fast.kernels import fused_linear_cross_entropy
from reca_fast.models.choices import DTYPES, choose_operations
from reca_fast.models.files import Change, EmptyWeights, Place, check_finite, fill, open_weights
from reca_fast.models.files.folder import read_object
from reca_fast.models.parts.clip_vision import check_clip_vision
from reca_fast.models.parts.magvit import MAGVIT_FOLDER, check_magvit
from reca_fast.models.protocol import Case, FrozenPart
from reca_fast.models.together import draw_together
from reca_fast.sample import Sample

from .batch import ShowoBatch
from .cases import RecordedCase, ShowoCase
from .config import CLASS, CONFIG_FILE, PUBLISHED, ShowoConfig
from .drawing import drawn_codes
from .encoders import CLIP_FOLDER, EncoderConfig, ShowoEncoders
from .export import export_folder
from .flops import step_flops
from .inputs import ShowoInputs
from .names import NETWORK_NAMES
from .network import Showo
from .sampling import ShowoSampling
from .tokenizer import PUBLISHED_TOKENIZER, TOKENIZER_FILES, ShowoTokenizer, open_tokenizer
from .understanding import frozen_parts, understanding_logits
from .weights import check_weights, weights_file


class ShowoModel:
    """One Show-o: the network (`module`), and beside it the frozen encoders and the tokenizer of text. The methods are
    those of `reca_fast.models.protocol.Model`.

    Args:
        config: sizes of the network.
        options: `options.path` is the checkpoint folder; methods that read no files work without it.
        tokenizer: of text; None where none is read and nothing is laid out.
        encoders: sizes of the frozen encoders.

    Raises:
        UserError: an option that does not fit the model.
    """

    MARK: ClassVar[str] = f"{CONFIG_FILE} of a {CLASS}"
    PUBLISHED: ClassVar[Sequence[str]] = tuple(PUBLISHED)
    SAMPLING: ClassVar[type] = ShowoSampling

    def __init__(
        self,
        config: ShowoConfig,
        options: ModelConfig,
        tokenizer: ShowoTokenizer | None = None,
        encoders: EncoderConfig | None = None,
    ) -> None:
        self.config, self.options, self.folder = config, options, Path(options.path)
        self.dtype = DTYPES[options.precision]
        self._tokenizer = tokenizer
        self.clip_sees = _clip_sees(config, options)
        sizes = EncoderConfig() if encoders is None else encoders
        if sizes.magvit.codebook_size != config.codebook_size:
            raise UserError(
                f"The tokenizer of pictures has {sizes.magvit.codebook_size} codes, {CONFIG_FILE} says "
                f"codebook_size {config.codebook_size}; take both from one checkpoint."
            )
        self.vector_width = sizes.clip.hidden_size if config.w_clip_vit and sizes.clip else None
        with torch.device("meta"):
            self.module = Showo(config, self.vector_width)
        self.encoders = ShowoEncoders(sizes, clip_sees=self.clip_sees, dtype=self.dtype)

    @property
    def drawn_side(self) -> int:
        """256 or 512 for the public checkpoints, by the number of codes in config.json."""
        return math.isqrt(self.config.num_vq_tokens) * self.encoders.config.magvit.downsample

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        path = folder / CONFIG_FILE
        if not path.is_file():
            return False
        try:
            values = read_object(path)
        except UserError:
            return False
        return values.get("_class_name") == CLASS or "w_clip_vit" in values

    @classmethod
    def open(cls, options: ModelConfig) -> "ShowoModel":
        folder = Path(options.path)
        config = ShowoConfig.from_folder(folder)
        made_for = PUBLISHED.get(options.name)
        if made_for is not None and made_for.w_clip_vit != config.w_clip_vit:
            with_clip, without = ("the recipe", "the checkpoint")[:: 1 if made_for.w_clip_vit else -1]
            raise UserError(
                f"model.name={options.name} and {folder} are two kinds of Show-o: {with_clip} has CLIP, {without} "
                f"reads codes. Take --config {'showo' if config.w_clip_vit else 'showo-vq'} for this checkpoint."
            )
        weights_file(folder, options.weights)  # raises before the tokenizer, which takes seconds
        encoders = EncoderConfig.from_folder(folder, clip=config.w_clip_vit)
        return cls(config, options, open_tokenizer(folder, config.llm_vocab_size, config.codebook_size), encoders)

    @classmethod
    def published(cls, name: str, options: ModelConfig) -> "ShowoModel | None":
        return cls(PUBLISHED[name], options, PUBLISHED_TOKENIZER) if name in PUBLISHED else None

    @classmethod
    def case(cls, folder: Path) -> Case | None:
        recorded = RecordedCase.open(folder)
        return None if recorded is None else ShowoCase(recorded, cls)

    @classmethod
    def check(cls, folder: Path, weights: str = "auto") -> str:
        model = cls.open(ModelConfig(path=str(folder), weights=weights, freeze_und=False))
        path = model.weights
        with open_weights(path) as stored:
            check_weights(model.module, stored)
            tensors = f"{len(stored.shapes)} tensors in {path.name}"
        check_finite(path)
        check_magvit(folder / MAGVIT_FOLDER)
        if model.config.w_clip_vit:
            check_clip_vision(folder / CLIP_FOLDER)
        kind = "with" if model.config.w_clip_vit else "without"
        numbers = sum(p.numel() for p in model.module.parameters())
        return f"{folder}: a whole {CLASS} checkpoint {kind} CLIP, {tensors}, {numbers / 1e9:.3f} G parameters."

    @property
    def tokenizer(self) -> ShowoTokenizer:
        assert self._tokenizer is not None, "this model was made without a tokenizer"
        return self._tokenizer

    @property
    def weights(self) -> Path:
        """The file that the module's weights are read from."""
        return weights_file(self.folder, self.options.weights)

    @property
    def device(self) -> torch.device:
        """Where the module is; the meta device before it has weights."""
        return self.module.final_layernorm.weight.device

    def files(self) -> Sequence[Path]:
        beside = (self.folder / name for name in (CONFIG_FILE, *TOKENIZER_FILES))
        return [self.weights, *self.encoders.files(self.folder), *(path for path in beside if path.is_file())]

    @property
    def copying_below(self) -> float | None:
        """See `reca_fast.models.protocol.SaysTokens`: what CLIP makes of a picture holds no codes to be copied."""
        return None if self.clip_sees else 0.1

    def says_weights(self) -> str:
        return f"weights: {self.weights}"

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.module.layers)

    def decays(self, name: str) -> bool:
        """Everything but biases, as the authors' list of names has it: norms and embeddings decay as well."""
        return not name.endswith(".bias")

    def fill(self, place: Place) -> None:
        self._choose_operations(place)
        with open_weights(self.weights) as weights:
            check_weights(self.module, weights)
            fill(self.module, weights, place, NETWORK_NAMES)

    def fill_empty(self, place: Place) -> None:
        device = self._choose_operations(place)
        fill(self.module, EmptyWeights(self.module), place)
        self.encoders.fill_empty(device)

    def _choose_operations(self, place: Place) -> torch.device:
        """Choose how the device that `place` names computes; that device."""
        if self.options.freeze_und and any(p.requires_grad for p in self.module.parameters()):
            raise UserError(
                "model.freeze_und=true cannot be: Show-o understands and draws with the same weights. Set "
                "--model.freeze_und false; loss.i2t above 0 keeps its understanding in training."
            )
        norm = "final_layernorm.weight"
        device = torch.device(place(norm, self.module.final_layernorm.weight).device)
        self.module.attention = choose_operations(self.options, device, self.dtype)
        return device

    def fill_encoders(self, device: torch.device) -> None:
        choose_operations(self.options, device, self.dtype)
        self.encoders.fill(self.folder, device)

    def drop_encoders(self) -> None:
        self.encoders = ShowoEncoders(self.encoders.config, clip_sees=self.clip_sees, dtype=self.dtype)

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def inputs(self, config: DataConfig) -> ShowoInputs:
        return ShowoInputs(self.tokenizer, self.encoders.config, config, clip_sees=self.clip_sees)

    def autocast(self, *, keep_casts: bool = False) -> AbstractContextManager[object]:
        """A context in which arithmetic has the model's dtype (bf16, say) though the weights are fp32. The residual
        stream stays fp32 in it, as in the authors' code.

        Args:
            keep_casts: keep the narrow copies of the weights until the context ends. Drawing uses them in every step.
        """
        trained = {p.dtype for p in self.module.parameters() if p.requires_grad}
        if {self.dtype} == trained | {self.module.lm_head.weight.dtype}:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, cache_enabled=keep_casts)

    def encode(self, batch: ShowoBatch) -> ShowoBatch:
        return self.encoders.encode(batch)

    @torch.no_grad()
    def encode_condition(self, picture: Tensor) -> dict[str, Tensor]:
        return self.encoders.of_condition(picture)

    @torch.no_grad()
    def encode_target(self, picture: Tensor) -> dict[str, Tensor]:
        return self.encoders.of_target(picture)

    def identity_of_encoders(self) -> dict[str, str]:
        return self.encoders.identity(self.folder)

    def loss_sums(self, batch: ShowoBatch) -> dict[str, Tensor]:
        codes = batch.text_ids[:0] if batch.codes is None else batch.codes
        seen = codes.index_fill(0, batch.masked, self.config.codebook_size)
        head, learnt = self.module.lm_head, batch.learnt
        with self.autocast():
            hidden = self.module(batch, seen, torch.cat([each.rows for each in learnt.values()]))
            parts = hidden.split([len(each.rows) for each in learnt.values()])
            return {
                task: fused_linear_cross_entropy(
                    rows,
                    head.weight,
                    each.labels(codes, self.config.first_code),
                    bias=head.bias,
                    reduction="sum",
                )
                for (task, each), rows in zip(learnt.items(), parts, strict=True)
            }

    def flops(self, batch: ShowoBatch) -> float:
        return step_flops(self.config, batch, self.vector_width)

    @torch.no_grad()
    def sample(
        self, conditions: Sequence[Sample], sizes: Sequence[Size], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> list[Tensor]:
        stride, settings = self.encoders.config.magvit.downsample, sampling.filled(ShowoSampling)
        for width, height in sizes:
            if width < stride or height < stride or width % stride or height % stride:
                raise UserError(
                    f"A picture of {width} x {height} cannot be drawn: both sides must be multiples of {stride}."
                )

        def draw(numbers: list[int]) -> list[Tensor]:
            columns, rows = (side // stride for side in sizes[numbers[0]])
            samples = [conditions[i] for i in numbers]
            codes = drawn_codes(self, samples, rows * columns, settings, [seeds[i] for i in numbers])
            return [self.encoders.decode(each, rows, columns) for each in codes]

        with self.autocast(keep_casts=True):
            return draw_together(sizes, sampling.together, draw)

    def image_logits(self, batch: ShowoBatch, seen: Tensor) -> Tensor:
        """Logits of the codes of every target, fp32 [C, codes], of an encoded batch.

        Args:
            seen: int64 [C], the codes as the model sees them; `codebook_size` where one is unknown.
        """
        first, head = self.config.first_code, self.module.lm_head
        hidden = self.module(batch, seen, batch.target_rows)
        codes = slice(first, first + self.config.codebook_size)
        return F.linear(hidden, head.weight[codes], head.bias[codes]).float()

    def frozen(self) -> Sequence[FrozenPart]:
        return frozen_parts(self.folder, self.weights, self.encoders.config)

    def understanding(self) -> Tensor:
        return understanding_logits(self)

    def export(self, folder: Path, weights: Mapping[str, Change], dtype: torch.dtype | None) -> list[str]:
        with torch.device("meta"):
            module = Showo(self.config, self.vector_width)
        return export_folder(self.folder, folder, module, weights, dtype, self.weights)


def _clip_sees(config: ShowoConfig, options: ModelConfig) -> bool:
    """Whether CLIP sees the conditions; otherwise they are read as codes."""
    if options.condition == "understanding" and not config.w_clip_vit:
        raise UserError(
            "model.condition=understanding needs a checkpoint with CLIP (w_clip_vit in config.json); this one reads "
            "pictures as codes, set --model.condition generation or auto."
        )
    return config.w_clip_vit and options.condition != "generation"
