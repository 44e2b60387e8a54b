"""From a record to a training sample, in two steps: first a cheap plan, then the decoding and resizing.

A plan says what the sample will be and how many tokens it takes. It needs only the header of the picture, so packs are
put together before anything is decoded. Every random choice is a hash of (data.seed, epoch, key), so a run repeats it
when it is resumed or has another number of processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from reca_fast.config import DataConfig, ResizeConfig
from reca_fast.config.rules import check_data
from reca_fast.data.captions import NO_CAPTION, Caption, choose_caption
from reca_fast.data.images import blur, decode, picture_size
from reca_fast.data.inputs import Inputs, Plan, Size
from reca_fast.data.orientation import exif_orientation, seen, upright
from reca_fast.data.records import BadImage, BadRecord, NoCaption, Record
from reca_fast.data.templates import choose_template, some_templates
from reca_fast.data.windows import before_turning, place_of_crop, resize_window, window_of
from reca_fast.errors import UserError
from reca_fast.randomness import stable_uniform
from reca_fast.sample import I2T, RECA, T2I, TASKS, Sample, Text, Turn


@dataclass(frozen=True)
class SamplePlan:
    """What one record will become in one epoch."""

    index: int  # number of the record in its source
    key: str
    epoch: int
    tasks: tuple[str, ...]
    size: Size  # of the picture as it is seen, before it is resized
    text: Text | None  # the prompt; None when data.text_dropout left it out
    picture: Plan  # what the picture becomes
    lack: str = ""  # why there is no caption, if t2i or i2t was drawn and the record serves reca instead

    @property
    def num_tokens(self) -> int:
        return self.picture.num_tokens


class SampleBuilder:
    """Makes samples out of records.

    Args:
        config: what samples shall be like.
        inputs: the data side of the model that will be trained.

    Raises:
        UserError: the settings exclude each other, or the model cannot join the tasks of `data.serve=all`.
    """

    def __init__(self, config: DataConfig, inputs: Inputs) -> None:
        check_data(config)
        self._templates = config.own_templates or some_templates(config.templates)
        self._weights = {task: getattr(config.tasks, task) for task in TASKS}
        self._config, self._inputs = config, inputs
        if config.serve == "all":
            self._check_joint()

    def picture_size(self, image: bytes) -> Size:
        """Width and height in pixels of an encoded picture, read from its header and turned as EXIF says.

        Raises:
            BadImage: the header cannot be read, or the picture is too large.
        """
        return picture_size(image, self._config.max_image_pixels, self._config.orientation)

    def size_of(self, record: Record) -> Size:
        """`picture_size` of a record's picture, which a cache knows already."""
        return self.picture_size(record.image) if record.cached is None else record.cached.size

    def plan(
        self,
        index: int,
        key: str,
        size: Size,
        caption: Caption | None,
        epoch: int,
        task: str | None = None,
        lack: str = NO_CAPTION,
        turns: Sequence[Turn] = (),
        weights: Mapping[str, float] | None = None,
    ) -> SamplePlan:
        """The plan for a record in an epoch.

        Args:
            index: number of the record in its source.
            key: its key.
            size: its picture's width and height in pixels, see `picture_size`.
            caption: its caption; of several, the epoch draws one.
            epoch: number of the epoch.
            task: the task to serve; None draws one, or takes all of them, as `data.serve` says.
            lack: why there is no caption, where it is None.
            turns: a conversation about the picture, in place of a caption.
            weights: how often each task is drawn; those in `data.tasks` where it is None.

        Raises:
            NoCaption: the task needs a caption, there is none, and reca cannot take its place, as its weight is 0.
            BadRecord: the model has no use for such a picture.
        """
        weights = self._weights if weights is None else weights
        drawn = tasks = (task,) if task else self._draw_tasks(epoch, key, weights)
        if caption is None and (T2I in tasks or (I2T in tasks and not turns)):
            if not weights.get(RECA):
                raise NoCaption(lack, f"the task is {' and '.join(tasks)}")
            tasks = (RECA,)
        text = self._text(tasks, caption, turns, epoch, key)
        lack = lack if tasks != drawn else ""
        return SamplePlan(index, key, epoch, tasks, size, text, self._inputs.plan(tasks, size, text), lack)

    def _text(
        self, tasks: Sequence[str], caption: Caption | None, turns: Sequence[Turn], epoch: int, key: str
    ) -> Text | None:
        """The text of a sample: what is to be said, else a prompt; None when data.text_dropout left the prompt out."""
        seed = self._config.seed
        if I2T in tasks:
            return self._inputs.converse(turns or (Turn("", choose_caption(caption or "", seed, epoch, key)),))
        if stable_uniform("text_dropout", seed, epoch, key) < self._config.text_dropout:
            return None
        is_asked = T2I not in tasks
        prompt = (
            choose_template(seed, epoch, key, self._templates)
            if is_asked
            else choose_caption(caption or "", seed, epoch, key)
        )
        return Text(tuple(self._inputs.tokenize(prompt)))

    def build(self, record: Record, plan: SamplePlan) -> Sample:
        """The sample: the record's picture decoded and resized as planned, or what a cache holds in its place.

        Raises:
            BadImage: the picture is damaged, or is not of the size it was planned for.
            UserError: the cache is damaged, or holds pictures of other sizes.
        """
        picture = plan.picture
        if record.cached is not None:
            encoded = record.cached.read(picture.condition, picture.target)
            return Sample(plan.key, plan.tasks, None, None, plan.text, *encoded)
        condition, target = self.pictures(record, plan.size, picture.condition, picture.target, plan.epoch)
        return Sample(plan.key, plan.tasks, condition, target, plan.text)

    def pictures(
        self, record: Record, planned: Size, condition: Size | None, target: Size | None, epoch: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """The condition and the target of these sizes, uint8 [H, W, 3], out of a record's picture; None for no size.

        Args:
            record: its encoded picture.
            planned: the picture's size as its header told.
            condition, target: the sizes.
            epoch: decides which part of the picture a crop shows.

        Raises:
            BadImage: the picture is damaged, or is not of the size `planned`, as its header said.
        """
        image = decode(record.image, self._config.max_image_pixels, "ignore")
        turn = exif_orientation(record.image) if self._config.orientation == "apply" else 1
        size = seen(image.shape[1], image.shape[0], turn)
        if size != planned:
            raise BadImage("picture changed since its header was read", f"{size} against {planned}")
        if self._config.resize == "exact":
            image, turn = upright(image, turn), 1

        place = place_of_crop(self._config.seed, epoch, record.key)

        def resized(width: int, height: int, rule: ResizeConfig) -> Tensor:
            # Resized first, then turned: to turn 12 megapixels takes longer than to decode and resize them.
            window = before_turning(window_of(*size, rule.fit, place), *size, turn)
            return upright(resize_window(image, window, seen(width, height, turn), self._config.resize), turn)

        seen_by_encoder = None
        if condition:
            seen_by_encoder = blur(resized(*condition, self._config.condition_resize), self._config.blur_sigma)
        return seen_by_encoder, resized(*target, self._config.target_resize) if target else None

    def _draw_tasks(self, epoch: int, key: str, weights: Mapping[str, float]) -> tuple[str, ...]:
        if self._config.serve == "all":
            return tuple(task for task in TASKS if weights.get(task))
        point = stable_uniform("task", self._config.seed, epoch, key) * sum(weights.values())
        for task, weight in weights.items():
            point -= weight
            if point < 0:
                return (task,)
        return (max(weights, key=weights.__getitem__),)  # rounding may leave point at 0

    def _check_joint(self) -> None:
        """Ask the model for a joint sample before the first one comes, which is after the weights are loaded."""
        tasks = tuple(task for task in TASKS if self._weights[task] > 0)
        text = Text((0,), ((0, 1),) if I2T in tasks else ())
        try:
            self._inputs.plan(tasks, (self._config.target_resize.max_size,) * 2, text)
        except BadRecord as bad:
            raise UserError(f"data.serve=all joins {' and '.join(tasks)}: {bad}; set --data.serve one.") from None
