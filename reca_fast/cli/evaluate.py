"""`reca-fast evaluate`: scores of pictures beside their references and prompts, or of a model in the toy world.

PSNR and SSIM need nothing but the pictures. CLIP score, LPIPS and DINO similarity need weights that are on this machine
already: nothing is downloaded.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca_fast.cli.options import parse
from reca_fast.cli.prompts import prompts_by_picture
from reca_fast.config import DataConfig, DrawingMemory, ModelConfig, Place, SamplingConfig
from reca_fast.config.rules import check_sampling
from reca_fast.errors import UserError, writing
from reca_fast.schema import PositiveInt

if TYPE_CHECKING:
    from reca_fast.evaluation.score import Judges, Subject

NEEDED = {"lpips": "reference", "dino": "reference", "clip": "prompts"}
"""Judge -> what its score needs beside the pictures."""


@dataclass
class EvaluateOptions:
    pictures: Place = ""
    """Folder of the pictures to score, with the folders in it, as `generate` writes it."""
    reference: Place = ""
    """Folder of the pictures that they should be like, under the same names, whatever the endings."""
    prompts: Place = ""
    """The file that `generate` drew them from, for the CLIP score: JSONL, or with --layout the benchmark's own."""
    clip: Place = ""
    """Folder of a CLIP model in the layout of transformers, such as openai/clip-vit-large-patch14: gives the CLIP score
    of picture and prompt.
    """
    lpips: Place = ""
    """File of torchvision's weights of AlexNet or VGG16 (.pth or .safetensors): gives LPIPS to the reference."""
    dino: Place = ""
    """Folder of a DINO, DINOv2 or DINOv3 model in the layout of transformers: gives the DINO similarity to the
    reference.
    """
    resize: bool = False
    """Bring references to the size of their pictures (Pillow, bicubic) where they differ; otherwise that is refused."""
    toy: bool = False
    """Let the model of model.path draw the prompts and the validation pictures of the toy world, and score what an
    exact detector finds. Give --config, the recipe it was trained with, which says how pictures are shown to it.
    """
    count: PositiveInt = 200
    """Prompts of each subtask of the toy world, and pictures that are drawn again."""
    batch: PositiveInt = 16
    """How many pictures a judge looks at together, or the model is asked for; no score depends on it."""
    out: Place = "report.json"
    """The file to write: means with their 95 % intervals, and the scores of every picture."""
    device: str = "auto"
    """auto, cpu or cuda."""
    model: ModelConfig = field(default_factory=ModelConfig)
    memory: DrawingMemory = field(default_factory=DrawingMemory)
    data: DataConfig = field(default_factory=lambda: DataConfig(text_dropout=0.0))
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def main(args: Sequence[str]) -> int:
    options = parse(EvaluateOptions, "evaluate", args)
    out = Path(options.out)
    if out.is_dir():
        raise UserError(f"{out} is a folder; set --out to the name of a JSON file.")
    if options.toy == bool(options.pictures):
        raise UserError("Say what to score: --pictures FOLDER, or --toy with the model of --model.path.")
    for name in ("reference", "prompts", *NEEDED, "resize"):
        if options.toy and getattr(options, name):
            raise UserError(f"--{name} is for --pictures, and --toy has pictures of its own; leave one of the two out.")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    report = _toy_report(options) if options.toy else _pictures_report(options)
    partial = out.with_name(f".{out.name}.partial")
    with writing(out):
        partial.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8", "surrogatepass")
        partial.replace(out)
    for name, score in report["scores"].items():
        interval = f"{score['low']:.3f} to {score['high']:.3f}"
        print(f"{name:<30} {score['value']:8.3f}  ({interval}; {score['count']} pictures)")
    print(f"{out} has them, what they were computed from, and the scores of every picture.")
    return 0


def _toy_report(options: EvaluateOptions) -> dict[str, Any]:
    """The marks of a model in the toy world."""
    check_sampling(options.sampling)
    from reca_fast.hardware import pick_device
    from reca_fast.memory import fill_to_draw
    from reca_fast.models import open_model
    from reca_fast.models.files.identity import identity_of_files
    from reca_fast.proof.measure import measure

    model = open_model(options.model)
    print(model.says_weights())
    fill_to_draw(model, pick_device(options.device), options.memory)
    with _progress("drawn") as progress:
        found = measure(
            model,
            options.sampling,
            options.data,
            count=options.count,
            seed=options.sampling.seed,
            batch=options.batch,
            progress=progress,
        )
    report = found.report()
    psnr = {} if report["psnr"] is None else {"reconstruction.psnr": report["psnr"]}
    each = [{"subtask": one.prompt.subtask, "prompt": one.prompt.text, "passed": one.passed} for one in found.drawn]
    judged = {"model": options.model.path, "files": identity_of_files(model.files())}
    return {"kind": "toy", **judged, **report, "scores": report["scores"] | psnr, "each": each, **_versions()}


def _pictures_report(options: EvaluateOptions) -> dict[str, Any]:
    """The scores of pictures in a folder."""
    from reca_fast.evaluation.score import score_pictures

    _check_what_is_needed(options)
    subjects, left_out = _subjects(options)
    judges, judged = _judges(options)
    with _progress("scored") as progress:
        scores = score_pictures(subjects, judges, resized=options.resize, batch=options.batch, progress=progress)
    if judges.clip is not None and judges.clip.shortened:
        left_out["prompts of which CLIP reads only the beginning"] = judges.clip.shortened
    for what, number in left_out.items():
        print(f"{number:,} {what}")
    return {
        "kind": "pictures",
        "pictures": options.pictures,
        "reference": options.reference or None,
        "prompts": options.prompts or None,
        "resized": options.resize,
        "judges": judged,
        "left_out": left_out,
        "scores": {name: asdict(score) for name, score in scores.means().items()},
        "each": scores.each,
        **_versions(),
    }


def _check_what_is_needed(options: EvaluateOptions) -> None:
    for judge, needed in NEEDED.items():
        if getattr(options, judge) and not getattr(options, needed):
            raise UserError(f"--{judge} scores pictures beside their {needed}; give --{needed} too.")
    if options.prompts and not options.clip:
        raise UserError("--prompts is for the CLIP score; give --clip, the folder of a CLIP model, or leave it out.")
    if not options.reference and not options.clip:
        raise UserError("Nothing says what the pictures should be: give --reference, or --prompts and --clip.")


def _subjects(options: EvaluateOptions) -> "tuple[list[Subject], dict[str, int]]":
    """What is to be scored, and how many pictures are left out and why."""
    from reca_fast.evaluation.pictures import pair, pictures_in
    from reca_fast.evaluation.score import Subject

    folder, other = Path(options.pictures), Path(options.reference)
    pictures = pictures_in(folder)
    references = pictures_in(other) if options.reference else {}
    texts = prompts_by_picture(folder, Path(options.prompts)) if options.prompts else {}
    left_out: dict[str, int] = {}
    if references:
        pair(pictures, references, (folder, other))
        left_out["pictures without a reference of their name"] = len(pictures.keys() - references.keys())
        left_out["references without a picture of their name"] = len(references.keys() - pictures.keys())
    if texts:
        if not pictures.keys() & texts.keys():
            raise UserError(
                f"No picture of {folder} is called as a prompt of {options.prompts}: there are {min(pictures)} and the "
                f"like, and {min(texts)}; give the file that they were drawn from."
            )
        left_out["pictures without a prompt of their name"] = len(pictures.keys() - texts.keys())
    chosen = [
        Subject(name, file, references.get(name), texts.get(name))
        for name, file in sorted(pictures.items())
        if name in references or name in texts
    ]
    return chosen, {what: number for what, number in left_out.items() if number}


def _judges(options: EvaluateOptions) -> "tuple[Judges, dict[str, Any]]":
    """The judges that are asked for, and what the report says of them: path and checksums."""
    from reca_fast.evaluation.judges import ClipScore, DinoSimilarity
    from reca_fast.evaluation.lpips import Lpips
    from reca_fast.evaluation.score import Judges
    from reca_fast.hardware import pick_device
    from reca_fast.models.files.identity import identity_of_files

    device = pick_device(options.device)
    judges = Judges(
        ClipScore(Path(options.clip), device) if options.clip else None,
        Lpips(Path(options.lpips), device) if options.lpips else None,
        DinoSimilarity(Path(options.dino), device) if options.dino else None,
    )
    said = {}
    for judge in NEEDED:
        if path := getattr(options, judge):
            inside = sorted(file for file in Path(path).glob("*") if file.is_file())  # none where it is a file itself
            files = inside or [Path(path)]
            said[judge] = {"path": path, "files": identity_of_files(files)}
    return judges, said


def _versions() -> dict[str, Any]:
    """What else a score may depend on."""
    from importlib.metadata import version

    from reca_fast import __version__

    packages = ("torch", "torchmetrics", "transformers", "pillow")
    return {"versions": {"reca-fast": __version__, **{name: version(name) for name in packages}}}


@contextmanager
def _progress(done: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr for as long as the context lasts; what it gives takes the number that is done, and of all."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn(f"pictures {done}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(done, total=None)
        yield lambda number, total: bar.update(task, completed=number, total=total)
