"""What training, sampling and export need of a model. Everything else in this project is written against this page.

A model is built on the meta device from a configuration alone, so that its sizes are known before any weight is read.
Then the trainer pulls its memory levers on `blocks()`, says where each parameter belongs (`fill`), and goes through
the packs: `encode` runs the frozen encoders, `loss_sums` the rest. `docs/adding-a-model.md` shows how to write one.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from reca_fast.config import Attention, DataConfig, ModelConfig, SamplingConfig
from reca_fast.data.inputs import Batch, Inputs, Size
from reca_fast.models.files import Change, Place
from reca_fast.sample import Sample

__all__ = ["Batch", "Case", "EditsPictures", "FrozenPart", "Inputs", "Model", "Place", "SaysTokens", "Size"]


class FrozenPart(NamedTuple):
    """A part of a model that training leaves as it is, on the disk."""

    name: str
    """In words, for messages; the same for every checkpoint of the architecture."""
    file: Path
    """The file of the checkpoint folder that holds it."""
    keys: tuple[str, ...]
    """Its tensors in that file; none where all that the file holds is trained."""


class Case(Protocol):
    """A recorded parity case: what the authors' code was given, and every tensor that it computed."""

    def replay(self, *, attention: Attention, dtype: torch.dtype, weights: Path | None) -> Iterator[tuple[str, Tensor]]:
        """Compute the tensors again on the CPU, through the model's own `loss_sums`, and give them by name.

        Args:
            attention: backend of the attention.
            dtype: of the arithmetic and the weights.
            weights: file or checkpoint folder to take the weights from instead of the case's own.
        """
        ...

    def expected(self) -> dict[str, Tensor]:
        """The recorded tensors, under the same names."""
        ...

    def tolerance(self, name: str, dtype: torch.dtype) -> float:
        """Largest allowed difference between the two, as a share of the recorded tensor's largest entry."""
        ...


class Model(Protocol):
    """One architecture with one set of weights. The batches in its methods are of a kind of its own: what the `collate`
    of its inputs makes.
    """

    MARK: ClassVar[str]
    """The file by which a checkpoint folder of this architecture is told, for messages."""
    PUBLISHED: ClassVar[Sequence[str]]
    """Names under which its authors published models, for `published`."""
    SAMPLING: ClassVar[type]
    """A dataclass of the fields of `SamplingConfig` that `sample` follows, with its authors' values as defaults. The
    one of guidance is what `generate` draws with; other verbs set it to 1 unless told otherwise.
    """

    @property
    def module(self) -> nn.Module:
        """What is trained, together with the frozen parts that it computes with; on the meta device until `fill`."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the arithmetic, from `ModelConfig.precision`. Trained weights are fp32 whatever it is: where it is
        narrower, `loss_sums` and `sample` enter torch.autocast themselves.
        """
        ...

    @property
    def drawn_side(self) -> int:
        """Side, in pixels, of the squares that its authors draw with it, which `generate` draws unless told otherwise;
        0 where it draws nothing from texts.
        """
        ...

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether a checkpoint folder is one of this architecture's, told by its file names."""
        ...

    @classmethod
    def open(cls, options: ModelConfig) -> Self:
        """The model of the checkpoint folder `options.path`, of which the configuration and the tokenizer are read.

        Raises:
            UserError: a file is missing or damaged, or an option does not fit the model.
        """
        ...

    @classmethod
    def published(cls, name: str, options: ModelConfig) -> Self | None:
        """The model that its authors published under `name`, at its true sizes and without any file; None when
        `name` is not one of them. It serves to plan memory and time.
        """
        ...

    @classmethod
    def case(cls, folder: Path) -> Case | None:
        """The parity case in a folder, or None when it is one of another architecture.

        Raises:
            UserError: a file of it is missing or damaged.
        """
        ...

    @classmethod
    def check(cls, folder: Path, weights: str = "auto") -> str:
        """Read a checkpoint folder strictly, names, shapes and numbers, and say in one line what it holds.

        Args:
            weights: which file of weights, as `ModelConfig.weights` names it.

        Raises:
            UserError: anything is missing, unexpected or misshapen, or a number is NaN or infinite.
        """
        ...

    # The data side

    def inputs(self, config: DataConfig) -> Inputs:
        """How samples are planned and packed under a data configuration.

        Raises:
            UserError: the configuration's picture sizes do not fit the model, or it asks for a task that the model
                cannot learn.
        """
        ...

    def tokenize(self, text: str) -> Sequence[int]:
        """Token ids of a text, without markers."""
        ...

    # The weights

    def files(self) -> Sequence[Path]:
        """The files of the checkpoint folder that the model is made of: others there have no effect."""
        ...

    def says_weights(self) -> str:
        """One line that says which file `fill` reads."""
        ...

    def blocks(self) -> Sequence[nn.Module]:
        """The repeated blocks of `module`, in the order in which they run: what memory levers act on one by one."""
        ...

    def decays(self, name: str) -> bool:
        """Whether weight decay acts on the parameter `name` of `module`."""
        ...

    def fill(self, place: Place) -> None:
        """Give `module` (on the meta device, possibly sharded by now) its weights. `place` says for each parameter on
        which device and in which dtype; only a frozen table that rows are read of may stay on the host, as a view of
        the file (`parts/host_table.py`).

        Raises:
            UserError: a file is missing or damaged, or its tensors are not the model's.
        """
        ...

    def fill_empty(self, place: Place) -> None:
        """Like `fill` and `fill_encoders`, but with tensors that hold no particular numbers, and without any file: to
        count what a step needs, on tensors that are fake, and to time it.
        """
        ...

    def fill_encoders(self, device: torch.device) -> None:
        """Give the frozen encoders, which stand beside `module`, their weights. Nothing needs them where all batches
        hold the encoders' outputs already.
        """
        ...

    def drop_encoders(self) -> None:
        """Free the frozen encoders' memory."""
        ...

    # The step

    def encode(self, batch: Any) -> Any:
        """The batch, which is on the model's device, with what the frozen encoders make of its pictures in their place.
        Nothing of it has a gradient: the method enters torch.no_grad itself. A batch that holds these outputs already
        passes through unchanged.
        """
        ...

    def encode_condition(self, picture: Tensor) -> dict[str, Tensor]:
        """What the frozen encoders make of one condition, for a cache: tensors on the model's device, under names of
        the model's own; {} when it has nothing to store of a condition. It needs the encoders' weights alone.

        A sample may then hold them in place of the picture (`Sample.encoded_condition`). `collate` puts them into the
        batch, and `encode` goes on from there without the encoders. The losses are the same bits in either case, so
        `encode` has to make of a picture what it makes of it alone, whatever else is in the pack.

        Args:
            picture: uint8 [H, W, 3] on the model's device.
        """
        ...

    def encode_target(self, picture: Tensor) -> dict[str, Tensor]:
        """The same for a target (`Sample.encoded_target`). Where a step draws from a distribution, its parameters are
        stored, and `encode` draws with the random numbers of the batch.
        """
        ...

    def identity_of_encoders(self) -> Mapping[str, str]:
        """Name of each encoder, in words -> a checksum of all that `encode_condition` and `encode_target` depend on
        there: its tensors as the files hold them, and its sizes and other constants. What encodes nothing has no part
        in it, so that a cache outlasts training. It is read from the files, and loads no encoder.

        Raises:
            UserError: a file is missing or damaged.
        """
        ...

    def loss_sums(self, batch: Any) -> dict[str, Tensor]:
        """Task -> sum of the losses of its `batch.counts[task]` tokens, 0-d, of an encoded batch.

        It draws no random number and never waits for the device. Every trained parameter takes part in every batch,
        with a gradient of zero where the batch has no token for it: FSDP would wait for a missing one.
        """
        ...

    def flops(self, batch: Any) -> float:
        """Useful floating-point operations of forward and backward on a batch that is on the CPU, without those of
        recomputation.
        """
        ...

    # What comes of it

    def sample(
        self, conditions: Sequence[Sample], sizes: Sequence[Size], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> list[Tensor]:
        """Pictures uint8 [H, W, 3], one for each condition, of the given sizes.

        Args:
            conditions: samples of which the condition and the text count; either may be None.
            sampling: how to draw. Its `seed` is in `seeds` already.
            seeds: of the starting noise. A picture depends on nothing but its own condition, size and seed: bit for
                bit, or up to rounding where `sampling.together` is above 1 and the model draws several at once. One
                that cannot draws one after another.

        Raises:
            UserError: a size that the model cannot draw, or a setting of `sampling` that it does not follow.
        """
        ...

    def export(self, folder: Path, weights: Mapping[str, Change], dtype: torch.dtype | None) -> list[str]:
        """Write a checkpoint folder in the authors' layout, with `weights` (by parameter name of `module`, before
        levers changed its layers) in place of the base's, or what they make of the base's; `dtype` None keeps the
        base's. Returns what else lies in the base's folder and was not copied.
        """
        ...

    # The proof that understanding stays as it was

    def frozen(self) -> Sequence[FrozenPart]:
        """Every tensor in the checkpoint's files that training leaves as it is, by part: the parameters of `module`
        that are not trained, and the frozen encoders. No weight is read.
        """
        ...

    def understanding(self) -> Tensor:
        """Logits [tokens, vocabulary] of a fixed text behind a fixed picture, computed on the CPU from the files alone.

        It leaves `module` as it is and takes little of the host's memory: frozen weights in the dtype of their mapped
        file stay in the file.

        Raises:
            UserError: a file is missing or damaged.
        """
        ...


@runtime_checkable
class SaysTokens(Protocol):
    """What a model has besides if its pictures are tokens that it says one by one, each with a cross-entropy."""

    @property
    def copying_below(self) -> float | None:
        """The loss of a token of reca below which the model cannot be understanding its condition, but must be copying
        tokens out of it: training warns then. None where a condition holds no tokens of the picture.
        """
        ...


@runtime_checkable
class EditsPictures(Protocol):
    """What a model has besides if it changes pictures as instructions say; `models.editor` asks a model for it."""

    EDITING: ClassVar[type]
    """A dataclass of the fields of `SamplingConfig` that `edit` follows, with its authors' values as defaults."""

    def edited_size(self, size: Size) -> Size:
        """Width and height of what `edit` makes of a picture of this width and height, in pixels."""
        ...

    def edit(
        self, pictures: Sequence[Tensor], instructions: Sequence[str], sampling: SamplingConfig, seeds: Sequence[int]
    ) -> list[Tensor]:
        """Each picture, changed as its instruction says: uint8 [H, W, 3] on the CPU, of the size `edited_size`.

        Args:
            pictures: uint8 [H, W, 3], upright, of any size; the model resizes them.
            sampling: how to draw. Its `seed` is in `seeds` already.
            seeds: of every random number. An edit depends on nothing but its own picture, instruction and seed.

        Raises:
            UserError: a setting of `sampling` that editing does not follow.
        """
        ...
