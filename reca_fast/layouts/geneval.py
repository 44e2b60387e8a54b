"""GenEval: a folder for each line of its metadata, with that line and the pictures in it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from reca_fast.schema import from_dict

from .layout import Drawn, Item, Layout, Output, Prompts, Request, command
from .reading import OWN, checked_prompt, counted_objects


@dataclass
class Metadata:
    """A line of evaluation_metadata.jsonl, as far as the evaluator needs it."""

    tag: str
    prompt: str
    include: list[dict[str, Any]] = field(default_factory=list)
    exclude: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if any({"class", "count"} - thing.keys() for thing in self.include + self.exclude):
            raise ValueError("each entry of include and exclude needs 'class' and 'count'")


def _read(request: Request) -> Prompts:
    items = []
    for number, line, entry, where in counted_objects(request.prompts):
        metadata = from_dict(Metadata, entry, where, remedy=OWN)
        folder = PurePosixPath(f"{number:05d}")
        # The evaluator reads the file as one object, whatever its name says of lines.
        content = line.strip().removeprefix("\ufeff").encode() + b"\n"
        samples = range(request.per_prompt)
        items.append(
            Item(
                key=f"{number:05d}",
                prompt=checked_prompt(metadata.prompt, where),
                outputs=tuple(Output(folder / "samples" / f"{sample:05d}.png", (sample,)) for sample in samples),
                beside={folder / "metadata.jsonl": partial(bytes, content)},
                where=where,
            )
        )
    return Prompts(items, [request.prompts], published=553)


def _commands(drawn: Drawn) -> Sequence[str]:
    results, evaluate = drawn.out / "results.jsonl", "evaluation/evaluate_images.py"
    return [
        command("python", evaluate, drawn.folder, "--outfile", results, "--model-path", "DETECTOR_FOLDER"),
        command("python", "evaluation/summary_scores.py", results),
    ]


GENEVAL = Layout(
    benchmark="GenEval",
    per_prompt=12,
    preset="geneval",
    judge="Mask2Former Swin-S (mmdet 2.x), and open_clip ViT-L/14 of OpenAI for colours",
    score="share of right pictures for each of six tags; overall is the mean of the six",
    read=_read,
    commands=_commands,
)
