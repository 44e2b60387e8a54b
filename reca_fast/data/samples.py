"""One record -> one training example, in two steps: a cheap plan (tasks, sizes, tokens) and the picture work itself.

Plans need only a picture's header, so packs can be filled before anything is decoded. Every random choice is a hash of
(config.seed, epoch, key): a resumed or re-sharded run repeats it.
"""

from dataclasses import dataclass

from torch import Tensor

from reca_fast.config import DataConfig
from reca_fast.config_rules import check_data
from reca_fast.data.captions import NO_CAPTION, Caption, choose_caption
from reca_fast.data.images import blur, decode, picture_size, resize
from reca_fast.data.inputs import Inputs, Plan, Size
from reca_fast.data.orientation import exif_orientation, seen, upright
from reca_fast.data.records import BadImage, NoCaption, Record
from reca_fast.data.templates import choose_template
from reca_fast.randomness import stable_uniform
from reca_fast.sample import I2T, RECA, TASKS, Sample, Text


@dataclass(frozen=True)
class SamplePlan:
    """What will become of one record in one epoch."""

    index: int  # number of the record in its source
    key: str
    epoch: int
    tasks: tuple[str, ...]
    size: Size  # of the picture as it is seen, before it is resized
    text: Text | None  # template or caption; None when condition dropout removed it
    plan: Plan
    lack: str = ""  # why there is no caption, when another task was drawn and the record serves reca instead

    @property
    def num_tokens(self) -> int:
        return self.plan.num_tokens


class SampleBuilder:
    """Plans and builds the samples of one model (`inputs`) as the data configuration says."""

    def __init__(self, config: DataConfig, inputs: Inputs) -> None:
        check_data(config)
        self._weights = {task: getattr(config.tasks, task) for task in TASKS}
        self._config, self._inputs = config, inputs

    def picture_size(self, image: bytes) -> Size:
        """Size of an encoded picture as it is seen, read from its header. Raises BadImage."""
        return picture_size(image, self._config.max_image_pixels, self._config.orientation)

    def plan(
        self,
        index: int,
        key: str,
        size: Size,
        caption: Caption | None,
        epoch: int,
        task: str | None = None,
        lack: str = NO_CAPTION,
    ) -> SamplePlan:
        """The plan for the record `index`, a picture of `size`, in `epoch`.

        Args:
            caption: one, several of which the epoch draws one, or None for the reason `lack`.
            task: instead of one drawn by weight.

        Raises:
            NoCaption: the drawn task needs a caption, there is none, and `reca` has no weight to stand in.
            BadRecord: the model has no use for such a picture.
        """
        seed, dropout = self._config.seed, self._config.text_dropout
        drawn = task = task or self._draw_task(epoch, key)
        if task == RECA or caption is None:
            if task != RECA and self._weights[RECA] == 0:
                raise NoCaption(lack, f"the task is {task}")
            task, prompt = RECA, choose_template(seed, epoch, key)
        else:
            prompt = choose_caption(caption, seed, epoch, key)
        text = None
        if task == I2T or stable_uniform("text_dropout", seed, epoch, key) >= dropout:
            text = Text(tuple(self._inputs.tokenize(prompt)), supervised=task == I2T)
        lack = lack if task != drawn else ""
        return SamplePlan(index, key, epoch, (task,), size, text, self._inputs.plan((task,), size, text), lack)

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

        sizes = plan.plan
        condition = blur(resized(*sizes.condition), self._config.blur_sigma) if sizes.condition else None
        target = resized(*sizes.target) if sizes.target else None
        return Sample(plan.key, plan.tasks, condition, target, plan.text)

    def _draw_task(self, epoch: int, key: str) -> str:
        point = stable_uniform("task", self._config.seed, epoch, key) * sum(self._weights.values())
        for task, weight in self._weights.items():
            point -= weight
            if point < 0:
                return task
        return max(self._weights, key=self._weights.__getitem__)  # rounding left point at 0
