"""One record -> one training example, in two steps: a cheap plan (task, sizes, tokens) and the picture work itself.

Plans need only a picture's header, so packs can be filled before anything is decoded. Every random choice is a hash of
(config.seed, epoch, key): a resumed or re-sharded run repeats it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from reca_fast.config import DataConfig, ResizeConfig
from reca_fast.data.captions import NO_CAPTION, Caption
from reca_fast.data.images import BadImage, BadRecord, blur, decode, picture_size, resize, target_size
from reca_fast.data.orientation import exif_orientation, seen, upright
from reca_fast.data.prompts import choose_caption, choose_template, stable_uniform
from reca_fast.data.sources.base import Record
from reca_fast.errors import UserError
from reca_fast.flow import I2T, RECA, T2I, TASKS, Sample
from reca_fast.schema import check_ranges

MARKERS = 2  # start and end token of every split


class NoCaption(BadRecord):
    """A record that lacks the caption that its task needs."""


@dataclass(frozen=True)
class SamplePlan:
    """What will become of one record in one epoch; sizes are (width, height) in pixels."""

    index: int  # number of the record in its source
    key: str
    epoch: int
    task: str  # one of TASKS
    size: tuple[int, int]  # as the picture is seen, before it is resized
    vit_size: tuple[int, int] | None
    vae_size: tuple[int, int] | None
    prompt_ids: tuple[int, ...] | None  # template or caption; None when condition dropout removed it
    num_tokens: int  # in the pack, all splits with their markers
    lack: str = ""  # why there is no caption, when another task was drawn and the record serves reca instead


class SampleBuilder:
    """Plans and builds samples.

    `tokenize` turns text into ids without markers and must be safe to call from a thread. vit_patch and latent_stride
    are the pixels on one side of a ViT token and of a latent token.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenize: Callable[[str], Sequence[int]],
        vit_patch: int = 14,
        latent_stride: int = 16,
    ) -> None:
        check_ranges(config, "data.")
        _check_stride("data.vit_resize", config.vit_resize, vit_patch)
        _check_stride("data.vae_resize", config.vae_resize, latent_stride)
        self._weights = {task: getattr(config.tasks, task) for task in TASKS}
        if sum(self._weights.values()) == 0:
            raise UserError(f"data.tasks {self._weights}: at least one weight must be above 0.")
        self._config, self._tokenize = config, tokenize
        self._vit_patch, self._latent_stride = vit_patch, latent_stride

    def picture_size(self, image: bytes) -> tuple[int, int]:
        """(width, height) in pixels that a plan starts from, read from the header. Raises BadImage."""
        return picture_size(image, self._config.max_image_pixels, self._config.orientation)

    def plan(
        self,
        index: int,
        key: str,
        width: int,
        height: int,
        caption: Caption | None,
        epoch: int,
        task: str | None = None,
        lack: str = NO_CAPTION,
    ) -> SamplePlan:
        """The plan for a picture of width x height pixels in `epoch`.

        Args:
            caption: one, several of which the epoch draws one, or None for the reason `lack`.
            task: instead of one drawn by weight.

        Raises:
            NoCaption: the drawn task needs a caption, there is none, and `reca` has no weight to stand in.
        """
        seed, dropout = self._config.seed, self._config.text_dropout
        drawn = task = task or self._draw_task(epoch, key)
        if task == RECA or caption is None:
            if task != RECA and self._weights[RECA] == 0:
                raise NoCaption(lack, f"the task is {task}")
            task, text = RECA, choose_template(seed, epoch, key)
        else:
            text = choose_caption(caption, seed, epoch, key)
        prompt_ids: tuple[int, ...] | None = None
        if task == I2T or stable_uniform("text_dropout", seed, epoch, key) >= dropout:
            prompt_ids = tuple(self._tokenize(text))
        vit_size = None if task == T2I else target_size(width, height, self._config.vit_resize)
        vae_size = None if task == I2T else target_size(width, height, self._config.vae_resize)
        prompt_length = None if prompt_ids is None else len(prompt_ids)
        splits = (_grid(vit_size, self._vit_patch), _grid(vae_size, self._latent_stride), prompt_length)
        num_tokens = sum(length + MARKERS for length in splits if length is not None)
        lack = lack if task != drawn else ""
        return SamplePlan(index, key, epoch, task, (width, height), vit_size, vae_size, prompt_ids, num_tokens, lack)

    def build(self, record: Record, plan: SamplePlan) -> Sample:
        """Decode the record's picture and resize it as planned. Raises BadImage when that cannot be done."""
        image = decode(record.image, self._config.max_image_pixels, "ignore")
        turn = exif_orientation(record.image) if self._config.orientation == "apply" else 1
        size = seen(image.shape[1], image.shape[0], turn)
        if size != plan.size:
            raise BadImage("picture changed since its header was read", f"{size} against {plan.size}")
        if self._config.resize == "exact":
            image, turn = upright(image, turn), 1

        def resized(width: int, height: int) -> Tensor:
            # Turned afterwards: a photograph of 12 megapixels takes longer to turn than to decode and resize.
            return upright(resize(image, seen(width, height, turn), self._config.resize), turn)

        vit_image = blur(resized(*plan.vit_size), self._config.blur_sigma) if plan.vit_size else None
        vae_image = resized(*plan.vae_size) if plan.vae_size else None
        return Sample(plan.key, plan.task, vit_image, vae_image, plan.prompt_ids)

    def _draw_task(self, epoch: int, key: str) -> str:
        point = stable_uniform("task", self._config.seed, epoch, key) * sum(self._weights.values())
        for task, weight in self._weights.items():
            point -= weight
            if point < 0:
                return task
        return max(self._weights, key=self._weights.__getitem__)  # rounding left point at 0


def _grid(size: tuple[int, int] | None, side: int) -> int | None:
    """How many side x side tokens cover a picture; None for no picture."""
    return None if size is None else (size[0] // side) * (size[1] // side)


def _check_stride(option: str, rule: ResizeConfig, side: int) -> None:
    if rule.stride % side:
        raise UserError(f"{option}.stride is {rule.stride}; this model needs a multiple of {side}.")
    if rule.min_size > rule.max_size:
        raise UserError(f"{option}: min_size {rule.min_size} must be at most max_size {rule.max_size}.")
