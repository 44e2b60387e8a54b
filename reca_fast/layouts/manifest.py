"""What the pictures of a folder were drawn from, as `manifest.json` beside them says it: for whoever reports a score,
and so that pictures of two checkpoints never mix in one folder.
"""

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from reca_fast import __version__
from reca_fast.config import DrawingMemory, ModelConfig, SamplingConfig
from reca_fast.errors import UserError
from reca_fast.models import EditsPictures, Model
from reca_fast.models.files.identity import identity_of_files
from reca_fast.schema import from_dict, read_json

from .layout import Drawn, Layout, Prompts
from .reading import checksum_of

MANIFEST_FILE = "manifest.json"


@dataclass
class PromptsFile:
    """Which prompts were drawn."""

    file: str
    """Name of the file, or of the folder of files."""
    sha256: str
    """As `sha256sum FILE` prints it; of several files, that of the lines of `sha256sum *`."""
    count: int
    published: int | None
    """How many the benchmark has; null where it does not say."""


@dataclass
class Weights:
    """Which checkpoint drew them, and with what arithmetic."""

    folder: str
    """Name of its folder."""
    files: dict[str, str]
    """Name of a file -> checksum of its size and content, see `models/files/identity.py`."""
    precision: str
    frozen: str


@dataclass
class Manifest:
    """Everything that somebody needs who reports a score of the pictures, or draws them again."""

    benchmark: str
    layout: str
    judge: str
    score: str
    folder: str
    """The folder that is handed to the evaluator."""
    next: list[str]
    """What to run now, in a copy of the evaluator."""
    pictures: int
    """Files of pictures."""
    complete: bool
    """Whether all of them are there."""
    prompts: PromptsFile
    per_prompt: int
    size: list[int] | None
    """Width and height in pixels; null where an edit follows the size of its source."""
    preset: str
    """Name of the authors' settings that stand below where no other were given; empty: those of the model."""
    sampling: dict[str, Any]
    """Every setting that the model follows, with the seed."""
    batch: int
    """Pictures in a batch; they depend on it where `sampling.together` is above 1."""
    model: Weights
    versions: dict[str, str]
    category: str = ""
    """T2I-CompBench: the category of the prompts, where their file's name does not say it."""
    origin: str | None = None
    """ImgEdit: the folder of the pictures to be edited, where it is not that of the prompts."""

    def write(self, out: Path) -> None:
        """Write it into the folder `out`, replacing an earlier one in one go."""
        partial = out / f".{MANIFEST_FILE}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", "utf-8", "surrogatepass")
        partial.rename(out / MANIFEST_FILE)


def manifest_of(
    layout: str,
    benchmark: Layout,
    prompts: Prompts,
    drawn: Drawn,
    model: Model,
    model_config: ModelConfig,
    memory: DrawingMemory,
    sampling: SamplingConfig,
    *,
    preset: str,
    size: tuple[int, int] | None,
    batch: int,
) -> Manifest:
    """The manifest of pictures that are still to be drawn.

    Args:
        preset: whose settings `sampling` has where no other were given; empty: none.
        size: width and height; None for edits.

    Raises:
        UserError: a file cannot be read, or a setting of `sampling` is one that the model does not follow.
    """
    kind = model.EDITING if size is None and isinstance(model, EditsPictures) else model.SAMPLING
    settings = json.loads(json.dumps(asdict(sampling.filled(kind))))  # tuples become lists, as they come back
    return Manifest(
        benchmark=benchmark.benchmark,
        layout=layout,
        judge=benchmark.judge,
        score=benchmark.score,
        folder=str(drawn.folder),
        next=list(benchmark.commands(drawn)),
        pictures=sum(len(item.outputs) for item in prompts.items),
        complete=False,
        prompts=PromptsFile(
            drawn.request.prompts.name, checksum_of(prompts.files), len(prompts.items), prompts.published
        ),
        per_prompt=drawn.request.per_prompt,
        size=None if size is None else list(size),
        preset=preset,
        sampling={"seed": sampling.seed, "together": sampling.together, **settings},
        batch=batch,
        model=Weights(
            model_name(model_config),
            identity_of_files(model.files()),
            model_config.precision,
            memory.frozen,
        ),
        versions={"reca_fast": __version__, "torch": torch.__version__, "python": platform.python_version()},
        category=drawn.request.category,
        origin=str(drawn.request.origin.absolute()) if drawn.request.origin else None,
    )


def model_name(model: ModelConfig) -> str:
    """What a checkpoint is called: the name of its folder, or of the tiny model that stands for one."""
    return Path(model.path).absolute().name if model.path else model.name


def begin(drawn: Drawn, manifest: Manifest) -> None:
    """Write the manifest of a new folder, or make sure that the one that is there says the same.

    Raises:
        UserError: the folder holds pictures that something else drew; the difference is named.
    """
    path = drawn.out / MANIFEST_FILE
    if path.exists():
        before = from_dict(Manifest, read_json(path), str(path))
        for what, then, now in _compared(before, manifest):
            if then != now:
                raise UserError(f"{drawn.out} holds pictures drawn with {what} {then}, now {now}; name another --out.")
        return
    files = (drawn.folder / output.path for item in drawn.items for output in item.outputs)
    if stranger := next((file for file in files if file.exists()), None):
        raise UserError(f"{stranger} is there, and no {MANIFEST_FILE} says what drew it; name another --out.")
    drawn.out.mkdir(parents=True, exist_ok=True)
    manifest.write(drawn.out)


def _compared(before: Manifest, now: Manifest) -> Iterator[tuple[str, Any, Any]]:
    """(what, before, now) of everything that a picture depends on."""
    yield "layout", before.layout, now.layout
    yield "prompts whose sha256 is", before.prompts.sha256, now.prompts.sha256
    for name in sorted(before.model.files.keys() | now.model.files.keys()):
        then, present = (each.files.get(name, "missing") for each in (before.model, now.model))
        yield f"another checkpoint, where the checksum of {name} is", then, present
    yield "model.precision", before.model.precision, now.model.precision
    yield "memory.frozen", before.model.frozen, now.model.frozen
    yield "category", before.category, now.category
    yield "per_prompt", before.per_prompt, now.per_prompt
    yield "width and height", before.size, now.size
    for name in sorted(before.sampling.keys() | now.sampling.keys()):
        yield f"sampling.{name}", before.sampling.get(name), now.sampling.get(name)
    if now.sampling["together"] > 1:
        yield "batch", before.batch, now.batch
