"""Draws a benchmark into the folder that its evaluator reads: batch after batch, by one process or by several, and on
from where an earlier run was stopped.

All pictures are cut into batches once and for all, and whoever is free draws the next one of which a file is missing.
So a picture is drawn beside the same ones whoever draws it, which is what its rounding may depend on
(`sampling.together`), and a run that was killed ends with the bytes of one that was not.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from torch import Tensor

from reca_fast.config import DrawingMemory, ModelConfig, SamplingConfig
from reca_fast.errors import UserError, writing
from reca_fast.memory import fill_to_draw
from reca_fast.models import Model, editor, open_model
from reca_fast.randomness import stable_uniform
from reca_fast.sample import Sample, Text
from reca_fast.train.distributed import Processes

from . import layout_of
from .files import PARTIAL, encoded, write_whole
from .layout import Drawn, Item, Layout, Output, Prompts, Request
from .manifest import Manifest, begin, manifest_of, model_name
from .progress import Progress


@dataclass(frozen=True)
class Settings:
    """How pictures are drawn, whatever the benchmark."""

    batch: int
    """How many are drawn at once."""
    size: tuple[int | None, int | None]
    """Width and height in pixels, None for what the model was made for."""
    device: str
    """auto, cpu or cuda."""
    model: ModelConfig
    memory: DrawingMemory
    sampling: SamplingConfig


class Part(NamedTuple):
    """One file to be drawn, and the prompt that it is of."""

    item: Item
    output: Output


def seed_of(seed: int, key: str, number: int) -> int:
    """The seed of one picture's noise, a function of nothing but these.

    Args:
        seed: `sampling.seed`.
        key: of the prompt.
        number: of the picture among those of its prompt.
    """
    return int(stable_uniform("picture", seed, key, number) * 2**53)


def batches_of(items: Sequence[Item], size: int) -> list[list[Part]]:
    """All files in their order, cut into batches of at most `size` pictures, or of a single file that shows more."""
    out: list[list[Part]] = []
    room = 0
    for part in (Part(item, output) for item in items for output in item.outputs):
        pictures = len(part.output.numbers)
        if pictures > room:
            out.append([])
            room = size
        out[-1].append(part)
        room -= pictures
    return out


def draw_benchmark(name: str, out: Path, request: Request, settings: Settings) -> None:
    """Draw all pictures of a benchmark that are not there yet, and say what to run next.

    Args:
        name: of the layout.
        out: the folder of the run; the manifest lies in it.
        request: which prompts.

    Raises:
        UserError: prompts that are not the benchmark's, settings that its evaluator or the model cannot take, or a
            folder that holds pictures of another checkpoint, prompts file or sampling. What was drawn stays.
    """
    benchmark = layout_of(name)
    with Processes() as processes:
        request = replace(request, prompts=request.prompts.absolute(), model=model_name(settings.model))
        prompts = benchmark.read(request)
        refuse_shared_files(prompts.items)
        model = open_model(settings.model)
        size = _size(benchmark, prompts, model, settings)
        kind = editor(model).EDITING if size is None else model.SAMPLING
        authors = settings.sampling.with_preset(benchmark.preset, kind) if benchmark.preset else None
        settings = replace(settings, sampling=authors or settings.sampling)
        home = out.absolute()
        drawn = Drawn(home, home / benchmark.folder, request, size[0] if size else 0, prompts.items)
        processes.join(settings.device)
        manifest = manifest_of(
            name,
            *(benchmark, prompts, drawn, model, settings.model, settings.memory, settings.sampling),
            preset=benchmark.preset if authors else "",
            size=size,
            batch=settings.batch,
        )
        if refusal := processes.agree(_refusal(manifest, drawn) if processes.is_main else ""):
            raise UserError(refusal)
        batches = batches_of(prompts.items, settings.batch)
        left = [number for number, batch in enumerate(batches) if not all(is_there(part, drawn) for part in batch)]
        left = processes.gather(left)[0]  # what the first one found: others may be drawing before the last has looked
        done = list(accumulate(pictures_in(batches[number]) for number in left))
        progress = Progress(processes.rank)
        progress.begin(manifest, sum(map(pictures_in, batches)), done[-1] if done else 0)
        if processes.rank < len(left):
            progress.say(model.says_weights())
            fill_to_draw(model, processes.device, settings.memory)
            progress.start()
            while (turn := processes.take("batches")) < len(left):
                batch = batches[left[turn]]
                _write(batch, _draw(model, batch, size, settings), drawn)
                progress.count(done[turn])
        processes.gather(None)  # each has written its last batch
        if processes.is_main:
            _finish(benchmark, drawn, manifest)
            progress.end(manifest, out)


def refuse_shared_files(items: Sequence[Item]) -> None:
    """Raise UserError when two prompts would be drawn to one file."""
    seen: dict[PurePosixPath, Item] = {}
    for item in items:
        for output in item.outputs:
            if output.path in seen:
                raise UserError(
                    f"{item.where}: {output.path} is the picture of {seen[output.path].where} already; rename one."
                )
            seen[output.path] = item


def is_there(part: Part, drawn: Drawn) -> bool:
    """Whether a file is drawn, and what has to lie beside it is there."""
    return all((drawn.folder / path).exists() for path in (part.output.path, *part.item.beside))


def pictures_in(batch: Sequence[Part]) -> int:
    """How many pictures are drawn for these files."""
    return sum(len(part.output.numbers) for part in batch)


def _size(benchmark: Layout, prompts: Prompts, model: Model, settings: Settings) -> tuple[int, int] | None:
    """Width and height of the pictures in pixels; None for edits, which follow their sources."""
    if any(item.source for item in prompts.items):
        if settings.size != (None, None):
            raise UserError("width or height is set, but an edit follows the size of its source; leave them out.")
        editor(model)
        return None
    if not model.drawn_side:
        raise UserError("This checkpoint's model draws nothing from a text; set --model.path to one that does.")
    width, height = (side or model.drawn_side for side in settings.size)
    if benchmark.square and width != height:
        raise UserError(
            f"width={width}, height={height}: {benchmark.benchmark} is cut into squares; set both to the same number."
        )
    return width, height


def _refusal(manifest: Manifest, drawn: Drawn) -> str:
    """Begin the folder, or go on with it; what speaks against it, if anything does."""
    try:
        with writing(drawn.out):
            begin(drawn, manifest)
    except UserError as error:
        return str(error)
    return ""


def _draw(model: Model, batch: Sequence[Part], size: tuple[int, int] | None, settings: Settings) -> list[Tensor]:
    """All pictures of a batch, in the order of its files."""
    wanted = [(part.item, number) for part in batch for number in part.output.numbers]
    pictures: list[Tensor] = []
    for start in range(0, len(wanted), settings.batch):
        now = wanted[start : start + settings.batch]
        items = [item for item, _ in now]
        seeds = [seed_of(settings.sampling.seed, item.key, number) for item, number in now]
        if size is None:
            sources = [item.source() for item in items if item.source]
            pictures += editor(model).edit(sources, [item.prompt for item in items], settings.sampling, seeds)
        else:
            texts = [Text(tuple(model.tokenize(item.prompt))) for item in items]
            samples = [Sample(item.key, (), None, None, text) for item, text in zip(items, texts, strict=True)]
            pictures += model.sample(samples, [size] * len(items), settings.sampling, seeds)
    return pictures


def _write(batch: Sequence[Part], pictures: Sequence[Tensor], drawn: Drawn) -> None:
    """Write a batch's files that are not there. What lies beside a picture comes first: where there is a picture, an
    evaluator finds everything.
    """
    left = iter(pictures)
    for item, output in batch:
        shown = [next(left) for _ in output.numbers]
        picture: Callable[[], bytes] = partial(encoded, shown, output.path.suffix)
        for path, content in (*item.beside.items(), (output.path, picture)):
            if not (drawn.folder / path).exists():
                write_whole(drawn.folder / path, content(), drawn.out)


def _finish(benchmark: Layout, drawn: Drawn, manifest: Manifest) -> None:
    """What can only be written when all pictures are there."""
    for item in drawn.items:
        for output in item.outputs:
            if not is_there(Part(item, output), drawn):
                raise UserError(
                    f"{drawn.folder / output.path} is missing, though a process has drawn it: all must share the "
                    "folder --out, and leave it as it is. The same command draws what is missing."
                )
    for name, content in (benchmark.index(drawn) if benchmark.index else {}).items():
        write_whole(drawn.out / name, content, drawn.out)
    with writing(drawn.out):
        replace(manifest, complete=True).write(drawn.out)
        shutil.rmtree(drawn.out / PARTIAL, ignore_errors=True)
