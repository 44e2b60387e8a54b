"""`reca-fast compare A B`: what two models draw of the same prompts from the same noise, side by side on one HTML page.

A and B are checkpoint folders, or folders of pictures that `generate` drew. The page is one file: it opens without a
server, loads nothing, and can be sent to somebody.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca_fast import __version__
from reca_fast.cli.generate import GenerateOptions, asked_for, draw
from reca_fast.cli.options import parse
from reca_fast.cli.prompts import Prompt, prompts_by_picture
from reca_fast.config import DrawingMemory, ModelConfig, Pixels, Place, SamplingConfig
from reca_fast.config.rules import check_sampling
from reca_fast.errors import UserError, writing
from reca_fast.schema import PositiveInt, from_dict, read_json

if TYPE_CHECKING:
    from reca_fast.evaluation.gallery import Row

POSITIONAL = {
    "first": "A checkpoint folder, or a folder of pictures that `generate` drew.",
    "second": "Another one, whose pictures stand at the right.",
}
PAGE, SETTINGS = "index.html", "drawn.json"
MAX_REPORT = 2**30
Scores = Mapping[str, Mapping[str, float]]
"""Name of a picture -> its scores."""


@dataclass(frozen=True)
class Report:
    """What is read of a report of `evaluate --pictures`."""

    each: dict[str, dict[str, float]]


@dataclass
class CompareOptions:
    first: Place
    second: Place
    prompts: Place = ""
    """The JSONL file of prompts, as for `generate`. Checkpoints draw it; folders of pictures were drawn from it,
    or from a benchmark's own file.
    """
    out: Place = "comparison"
    """Folder to write index.html to, and the pictures that checkpoints draw, in its folders first and second. Given
    again, the command draws what is missing.
    """
    titles: list[str] = field(default_factory=list)
    """What the two are called on the page, '["base", "RECA"]'; by default their folders' names."""
    scores: list[str] = field(default_factory=list)
    """Two reports of `evaluate --pictures`, '["a.json", "b.json"]', whose scores are shown and sorted by."""
    side: Pixels = 512
    """The longest side in pixels of a picture on the page; 500 prompts take some 30 MB at 384 pixels."""
    width: Pixels | None = None
    """Width of the pictures that are drawn, in pixels; by default the size that the model was made for."""
    height: Pixels | None = None
    """Height of the pictures that are drawn, in pixels; by default the size that the model was made for."""
    batch: PositiveInt = 4
    """How many pictures are drawn before they are written. Picture i starts from the noise of sampling.seed + i."""
    device: str = "auto"
    """auto, cpu or cuda."""
    model: ModelConfig = field(default_factory=ModelConfig)
    memory: DrawingMemory = field(default_factory=DrawingMemory)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def main(args: Sequence[str]) -> int:
    options = parse(CompareOptions, "compare", args, positional=POSITIONAL)
    given = Path(options.first), Path(options.second)
    titles = _titles(options, given)
    scores = _scores(options.scores)
    check_sampling(options.sampling)
    from reca_fast.evaluation.gallery import write_gallery

    out = Path(options.out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    drawn = [_is_checkpoint(folder) for folder in given]
    if any(drawn) and not options.prompts:
        raise UserError("Checkpoints draw prompts: give --prompts FILE.jsonl.")
    first, second = (
        _draw(folder, out / name, options) if is_checkpoint else folder
        for folder, is_checkpoint, name in zip(given, drawn, ("first", "second"), strict=True)
    )
    rows = _rows((first, second), options, scores)
    page = out / PAGE
    print(f"{page}: {len(rows):,} prompts are put on the page.", flush=True)
    with writing(page):
        write_gallery(page, rows, titles, _facts(options, given, drawn), options.side)
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB. Open it in a browser.")
    return 0


def _titles(options: CompareOptions, given: tuple[Path, Path]) -> tuple[str, str]:
    if options.titles:
        if len(options.titles) != 2:
            raise UserError(f"--titles names {len(options.titles)}; name two, of the first and of the second.")
        return options.titles[0], options.titles[1]
    first, second = (folder.resolve().name for folder in given)
    return (first, second) if first != second else (str(given[0]), str(given[1]))


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one of a model, rather than of pictures."""
    from reca_fast.models import recognised

    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give a checkpoint, or pictures that `generate` drew.")
    return recognised(folder) is not None


def _draw(checkpoint: Path, folder: Path, options: CompareOptions) -> Path:
    """Draw what is missing of the prompts' pictures; the folder that holds them."""
    from reca_fast.data.images import write_png
    from reca_fast.hardware import pick_device
    from reca_fast.memory import fill_to_draw
    from reca_fast.models import editor, open_model

    drawing = GenerateOptions(
        out=str(folder),
        prompts=options.prompts,
        width=options.width,
        height=options.height,
        batch=max(options.batch, options.sampling.together),
        model=replace(options.model, path=str(checkpoint), name=""),
        memory=options.memory,
        sampling=options.sampling,
    )
    prompts = asked_for(drawing)
    model = open_model(drawing.model)
    options.sampling.filled(editor(model).EDITING if any(prompt.image for prompt in prompts) else model.SAMPLING)
    _keep_settings(folder, checkpoint, model.files(), drawing, prompts)
    batches = range(0, len(prompts), drawing.batch)
    left = [start for start in batches if not all(map(_there(folder), prompts[start : start + drawing.batch]))]
    if not left:
        print(f"{folder}: all pictures are there.")
        return folder
    print(model.says_weights())
    fill_to_draw(model, pick_device(options.device), options.memory)
    for start in left:
        part = prompts[start : start + drawing.batch]
        for prompt, picture in zip(part, draw(model, part, drawing, start), strict=True):
            path = folder / f"{prompt.name}.png"
            with writing(path):
                write_png(picture, path)
        print(f"{folder}: {start + len(part):,} of {len(prompts):,} pictures", flush=True)
    return folder


def _there(folder: Path) -> Callable[[Prompt], bool]:
    return lambda prompt: (folder / f"{prompt.name}.png").exists()


def _keep_settings(
    folder: Path, checkpoint: Path, files: Sequence[Path], drawing: GenerateOptions, prompts: Sequence[Prompt]
) -> None:
    """Note what pictures a folder is for, or refuse one that holds others."""
    from reca_fast.models.files.identity import identity_of_files

    settings: dict[str, Any] = {
        "checkpoint": identity_of_files(files),
        "precision": drawing.model.precision,
        "memory": asdict(drawing.memory),
        "sampling": {name: value for name, value in asdict(drawing.sampling).items() if name != "together"},
        "width": drawing.width,
        "height": drawing.height,
        "prompts": [[prompt.name, prompt.text, str(prompt.image or "")] for prompt in prompts],
    }
    settings = json.loads(json.dumps(settings))
    path = folder / SETTINGS
    if path.exists():
        before = read_json(path, max_bytes=MAX_REPORT)
        for name, value in settings.items():
            if not isinstance(before, dict) or before.get(name) != value:
                raise UserError(
                    f"{folder} holds pictures of {checkpoint} or another checkpoint, drawn with other settings "
                    f"({name}); name another --out, or remove the folder."
                )
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{SETTINGS}.partial")
        partial.write_text(json.dumps(settings, ensure_ascii=False, indent=1), "utf-8", "surrogatepass")
        partial.replace(path)


def _scores(reports: Sequence[str]) -> tuple[Scores, Scores]:
    """The scores of every picture, from two reports of `evaluate`; none where no report is given."""
    if not reports:
        return {}, {}
    if len(reports) != 2:
        raise UserError(f"--scores names {len(reports)} reports; name two, of the first and of the second.")
    first, second = (_each(Path(report)) for report in reports)
    return first, second


def _each(report: Path) -> Scores:
    where = f"{report}, a report of `evaluate --pictures`,"
    return from_dict(Report, read_json(report, max_bytes=MAX_REPORT), where).each


def _rows(folders: tuple[Path, Path], options: CompareOptions, scores: tuple[Scores, Scores]) -> "list[Row]":
    """A row for each prompt that was drawn; without a file of prompts, for each picture."""
    from reca_fast.evaluation.gallery import Row
    from reca_fast.evaluation.pictures import pictures_in

    first, second = (pictures_in(folder) for folder in folders)
    if options.prompts:
        told = [prompts_by_picture(folder, Path(options.prompts)) for folder in folders]
        texts = told[0] | told[1]
    else:
        texts = {name: name for name in sorted(first.keys() | second.keys())}
    rows = [
        Row(name, text, (first.get(name), second.get(name)), (scores[0].get(name, {}), scores[1].get(name, {})))
        for name, text in texts.items()
        if name in first or name in second
    ]
    if not rows:
        raise UserError(f"No picture of {folders[0]} or {folders[1]} is called as a prompt of {options.prompts}.")
    if not any(all(row.pictures) for row in rows):
        raise UserError(
            f"No picture of {folders[0]} has the name of one of {folders[1]}, with the folders that it lies in; give "
            "two folders of one layout, and the folder that `generate` wrote to."
        )
    if options.scores and not any(its for row in rows for its in row.scores):
        raise UserError(f"No picture of {folders[0]} or {folders[1]} is in the reports of --scores.")
    return rows


def _facts(options: CompareOptions, given: tuple[Path, Path], drawn: Sequence[bool]) -> dict[str, str]:
    """What the page says on top."""
    facts = {
        side: f"{'drawn by' if is_drawn else 'pictures of'} {folder}"
        for side, folder, is_drawn in zip(("left", "right"), given, drawn, strict=True)
    }
    facts["prompts"] = options.prompts or "not given: pictures go by their names"
    if any(drawn):
        chosen = {name: value for name, value in asdict(options.sampling).items() if value is not None}
        size = {"width": options.width, "height": options.height}
        chosen |= {name: value for name, value in size.items() if value is not None}
        facts["settings"] = ", ".join(f"{name} {value}" for name, value in chosen.items() if name != "together")
    return facts | {"reca-fast": __version__}
