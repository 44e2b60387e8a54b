"""A plain VLM with an auxiliary decoder, behind the protocol that every model keeps (`reca_fast.models.protocol`)."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reca_fast.config import DataConfig, ModelConfig, SamplingConfig
from reca_fast.data.inputs import Size
from reca_fast.errors import UserError
from reca_fast.models.choices import DTYPES, choose_operations
from reca_fast.models.files import Change, EmptyWeights, Place, check_finite, fill
from reca_fast.models.files.folder import read_object
from reca_fast.models.files.sharded import weight_files
from reca_fast.models.parts.kl_vae_config import KLVAEConfig
from reca_fast.models.protocol import Case, FrozenPart
from reca_fast.models.together import draw_together
from reca_fast.objectives import next_token_loss
from reca_fast.sample import I2T, RECA, Sample

from .batch import FEATURES, TARGET, AuxiliaryBatch
from .chat import TOKENIZER_FILES, Chat, open_chat
from .decoder import ReconstructionDecoder, fitted_width, needed_stages
from .encoders import PREPROCESSOR_FILES, AuxiliaryEncoders, Goal, colours_of
from .export import CONFIG, DECODER, LANGUAGE, VAE_FOLDER, export_folder
from .family import FAMILIES
from .flops import step_flops
from .inputs import AuxiliaryInputs, Wording, collate
from .network import AuxiliaryNetwork
from .published import PUBLISHED
from .tables import give_tables
from .understanding import frozen_parts, understanding_logits
from .vae import CONFIG as VAE_CONFIG
from .vae import WEIGHTS as VAE_WEIGHTS
from .vae import vae_config
from .vlm import VLM, build_vlm
from .weights import check_vlm, fill_decoder, fill_language, holds_own_head, numbers, weights_file


@dataclass(frozen=True)
class AuxiliarySampling:
    """A decoder draws in one pass, without noise and without guidance: there is nothing to set."""


class AuxiliaryModel:
    """One VLM and its decoder (`module`), beside them the frozen encoders and the tokenizer. The methods are those of
    `reca_fast.models.protocol.Model`.

    Args:
        values: config.json of the VLM.
        options: `options.path` is the checkpoint folder; methods that read no files work without it.
        chat: tokenizer and chat template; None where no text is read.
        wording: how a sample begins; None: as `chat` says.
    """

    MARK: ClassVar[str] = CONFIG
    PUBLISHED: ClassVar[Sequence[str]] = tuple(PUBLISHED)
    SAMPLING: ClassVar[type] = AuxiliarySampling

    def __init__(self, values: Mapping[str, Any], options: ModelConfig, wording: Wording | None = None) -> None:
        self.values, self.options, self.folder = values, options, Path(options.path)
        self.dtype = DTYPES[options.precision]
        self.vlm = self._build()
        self.goal = goal_of(options)
        family, hidden_size = self.vlm.family, self.vlm.text.hidden_size
        stages = needed_stages(family.pixels_per_token, self.goal.cell)
        width = fitted_width(options.auxiliary.decoder_size, hidden_size, stages, self.goal.channels)
        with torch.device("meta"):
            decoder = ReconstructionDecoder(hidden_size, width, stages, self.goal.channels)
        self.module = AuxiliaryNetwork(self.vlm.language, decoder)
        self.vlm.language.dtype = self.dtype
        self._colours = colours_of(self.folder, family) if options.path else family.COLOURS
        self.encoders = AuxiliaryEncoders(self.vlm.tower, self.goal, self._colours, self.dtype)
        self.wording = wording or Wording.of(open_chat(self.folder, family, self.vlm.text.vocab_size))

    def _build(self) -> VLM:
        vlm = build_vlm(self.values, str(self.folder / CONFIG))
        if self.options.path and vlm.language.is_tied and holds_own_head(self.weights, vlm.family):
            vlm.language.untie()
        return vlm

    @property
    def drawn_side(self) -> int:
        """0: it draws nothing from a text."""
        return 0

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return architecture(folder) in FAMILIES

    @classmethod
    def open(cls, options: ModelConfig) -> "AuxiliaryModel":
        folder = Path(options.path)
        weights_file(folder, options.weights)
        return cls(read_object(folder / CONFIG), options)

    @classmethod
    def published(cls, name: str, options: ModelConfig) -> "AuxiliaryModel | None":
        if name not in PUBLISHED:
            return None
        config, head, marks = PUBLISHED[name]
        image = int(config.get("image_token_id", config.get("image_token_index", 0)))
        wording = Wording(None, (*range(head), image), ((0,) * marks, (0,) * marks))
        return cls(config, options, wording)

    @classmethod
    def case(cls, folder: Path) -> Case | None:
        return None  # no authors' code recorded any: tests compare with transformers' own losses

    @classmethod
    def check(cls, folder: Path, weights: str = "auto") -> str:
        model = cls.open(ModelConfig(path=str(folder), weights=weights, freeze_und=False))
        check_vlm(model.vlm.language, model.vlm.tower, model.weights)
        files = weight_files(model.weights)
        for file in files:
            check_finite(file)
        beside = "no VAE"
        if model.goal.folder is not None and model.goal.vae is not None:
            model.encoders.fill(model.weights, "cpu")
            check_finite(model.goal.folder / VAE_WEIGHTS)
            beside = "a VAE"
        total = numbers(model.vlm.language, model.vlm.tower)
        return (
            f"{folder}: a whole {model.vlm.family.CLASS} for an auxiliary decoder, {len(files)} file"
            f"{'s' * (len(files) > 1)} of weights, {total / 1e9:.3f} G parameters, {beside}."
        )

    @property
    def weights(self) -> Path:
        """The file that the VLM's weights are read from, or the index of several."""
        return weights_file(self.folder, self.options.weights)

    @property
    def chat(self) -> Chat:
        assert self.wording.chat is not None, "this model was made without a tokenizer"
        return self.wording.chat

    def files(self) -> Sequence[Path]:
        shards = weight_files(self.weights)
        index = () if self.weights in shards else (self.weights,)
        own = (self.folder / name for name in (CONFIG, *TOKENIZER_FILES, *PREPROCESSOR_FILES))
        vae = self.options.auxiliary.vae or self.folder / VAE_FOLDER
        of_vae = (Path(vae, name) for name in (VAE_CONFIG, VAE_WEIGHTS))
        return [path for path in (*shards, *index, *own, *of_vae) if path.is_file()]

    def says_weights(self) -> str:
        fresh = numbers(self.module.decoder) / 1e6
        return f"weights: {self.weights}; the decoder is made anew, with {fresh:.1f} M numbers"

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.vlm.language.layers)

    def decays(self, name: str) -> bool:
        """Where weight decay is asked for, it acts on matrices and kernels, as in the VLMs' own training."""
        module, _, kind = name.rpartition(".")
        leaf = module.rpartition(".")[2]
        return kind == "weight" and "norm" not in leaf and leaf not in ("ln_q", "embed_tokens")

    def fill(self, place: Place) -> None:
        self._choose_operations(place)
        fill_language(self.vlm.language, self.vlm.family, self.weights, place, LANGUAGE)
        fill_decoder(self.module.decoder, place, DECODER)

    def fill_empty(self, place: Place) -> None:
        device = self._choose_operations(place)
        fill(self.module, EmptyWeights(self.module), place)
        give_tables(self.vlm.language, self.vlm.language.tables, device)
        self.encoders.fill_empty(device)

    def _choose_operations(self, place: Place) -> torch.device:
        """Choose how the device that `place` names computes; that device."""
        device = torch.device(place(f"{LANGUAGE}lm_head.weight", self.vlm.language.lm_head.weight).device)
        self.vlm.language.backend = self.vlm.tower.backend = choose_operations(self.options, device, self.dtype)
        return device

    def fill_encoders(self, device: torch.device) -> None:
        self.vlm.tower.backend = choose_operations(self.options, device, self.dtype)
        self.encoders.fill(self.weights, device)

    def drop_encoders(self) -> None:
        self.encoders.drop()

    def tokenize(self, text: str) -> list[int]:
        return self.chat.encode(text)

    def inputs(self, config: DataConfig) -> AuxiliaryInputs:
        if self.options.condition == "generation":
            raise UserError(
                "model.condition=generation: a plain VLM sees pictures through its own vision tower alone; set "
                "--model.condition auto."
            )
        if self.options.freeze_und:
            raise UserError(
                "model.freeze_und=true leaves nothing to learn: the auxiliary decoder is there to train the VLM that "
                "it looks at. Set --model.freeze_und false."
            )
        if self.options.path and self.goal.vae is not None:
            self.goal.needed()
        limit = int(self.vlm.text.max_position_embeddings)
        return AuxiliaryInputs(self.vlm.family, self.wording, config, limit, self.goal.cell)

    def autocast(self) -> AbstractContextManager[object]:
        """Trained weights are fp32 whatever the dtype of the arithmetic is. Their narrow copies are not kept: a pass
        uses each weight once.
        """
        weight = self.vlm.language.lm_head.weight
        if weight.dtype == self.dtype == self.module.decoder.project.weight.dtype:
            return nullcontext()
        return torch.autocast(weight.device.type, self.dtype, cache_enabled=False)

    def encode(self, batch: AuxiliaryBatch) -> AuxiliaryBatch:
        return self.encoders.encode(batch)

    def encode_condition(self, picture: Tensor) -> dict[str, Tensor]:
        return {FEATURES: self.encoders.features(picture)}

    def encode_target(self, picture: Tensor) -> dict[str, Tensor]:
        return {TARGET: self.encoders.goal_of(picture)}

    def identity_of_encoders(self) -> dict[str, str]:
        return self.encoders.identity(self.weights, self.values)

    def loss_sums(self, batch: AuxiliaryBatch) -> dict[str, Tensor]:
        """The cross-entropy of the answers' tokens, and for each cell of a target the mean over its channels of the
        squared error.

        Args:
            batch: encoded, on the model's device.
        """
        assert len(batch.goals) == len(batch.reconstructed), "encode() comes first"
        with self.autocast():
            hidden, drawn, idle = self.module(batch, [(goal.shape[1], goal.shape[2]) for goal in batch.goals])
            said = hidden.index_select(0, batch.label_rows)
            sums = {I2T: next_token_loss(said, self.vlm.language.lm_head.weight, batch.labels, "sum")}
        if idle is not None:
            return {I2T: sums[I2T] + idle}
        errors = [(a.float() - b).square().mean(0).sum() for a, b in zip(drawn, batch.goals, strict=True)]
        return sums | {RECA: torch.stack(errors).sum()}

    def flops(self, batch: AuxiliaryBatch) -> float:
        return step_flops(self.module, self.vlm.tower, self.vlm.text, batch, self.goal.cell)

    @torch.no_grad()
    def sample(
        self, conditions: Sequence[Sample], sizes: Sequence[Size], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> list[Tensor]:
        """What the decoder makes of each condition's hidden states, in one pass. Prompts and seeds change nothing."""
        sampling.filled(AuxiliarySampling)
        if any(sample.condition_size is None for sample in conditions):
            raise UserError("A VLM with an auxiliary decoder draws what it sees again; it draws nothing from a text.")
        out = self.module.decoder.out.weight
        if not out.requires_grad and not out.any():  # neither trained nor in training
            raise UserError(
                "The auxiliary decoder of this model was never trained: every run makes it anew, and no checkpoint "
                "folder keeps it. Let a training run draw its reconstructions with --sample_every."
            )
        for width, height in sizes:
            if width % self.goal.cell or height % self.goal.cell:
                raise UserError(
                    f"A picture of {width} x {height} cannot be drawn: both sides must be multiples of "
                    f"{self.goal.cell}."
                )
        seen = [Sample(s.key, (RECA,), s.condition, None, None, s.encoded_condition) for s in conditions]

        def draw(numbers: list[int]) -> list[Tensor]:
            batch = collate([seen[i] for i in numbers], self.vlm.family, self.wording, self.goal.cell)
            encoded = self.encode(batch.to(self.vlm.language.lm_head.weight.device))
            cells = [(sizes[i][1] // self.goal.cell, sizes[i][0] // self.goal.cell) for i in numbers]
            with self.autocast():
                drawn = self.module(encoded.for_drawing(), cells).drawn
            return [self._picture(each.float()) for each in drawn]

        return draw_together(sizes, sampling.together, draw)

    def _picture(self, drawn: Tensor) -> Tensor:
        """The picture uint8 [H, W, 3], on the CPU, of what the decoder gave for it, fp32 [C, rows, columns]."""
        if self.goal.vae is not None:
            assert self.encoders.vae is not None, "fill_encoders() comes first"
            drawn = self.encoders.vae.decode(drawn[None])[0]
        return ((drawn * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu()

    def frozen(self) -> Sequence[FrozenPart]:
        return frozen_parts(self.vlm, self.folder, self.weights)

    def understanding(self) -> Tensor:
        return understanding_logits(self._build(), self.chat, self._colours, self.weights)

    def export(self, folder: Path, weights: Mapping[str, Change], dtype: torch.dtype | None) -> list[str]:
        return export_folder(self.folder, folder, self.vlm, weights, dtype, self.weights)


def goal_of(options: ModelConfig) -> Goal:
    """What is reconstructed under these options. Without any VAE, the sizes are those of FLUX.1's: enough to plan with.

    Raises:
        UserError: the VAE's configuration is missing or damaged.
    """
    if options.auxiliary.target == "pixel":
        return Goal(None, None)
    if options.auxiliary.vae:
        return Goal(vae_config(Path(options.auxiliary.vae)), Path(options.auxiliary.vae))
    inside = Path(options.path) / VAE_FOLDER
    if options.path and inside.is_dir():
        return Goal(vae_config(inside), inside)
    return Goal(KLVAEConfig(), None)


def architecture(folder: Path) -> str:
    """The first of the `architectures` in a folder's config.json; empty where there is none."""
    if not (folder / CONFIG).is_file():
        return ""
    try:
        names = read_object(folder / CONFIG).get("architectures")
    except UserError:  # another model's file, or nobody's: whoever opens the folder says what is wrong with it
        return ""
    return str(names[0]) if isinstance(names, list) and names else ""
