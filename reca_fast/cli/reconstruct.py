"""`reca-fast reconstruct IMAGES`: pictures drawn again from what the model sees of them, beside their originals.

A picture is drawn from its condition, which is the picture as the understanding encoder sees it, and from a prompt that
asks for its description. The authors' two guidance scales act when they are above 1: sampling.guidance leads away from
what would be drawn without the prompt, sampling.image_guidance from what would be drawn without the condition.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from reca_fast.cli.options import parse
from reca_fast.config import DataConfig, DrawingMemory, ModelConfig, Place, SamplingConfig
from reca_fast.config.rules import check_sampling
from reca_fast.errors import UserError, writing
from reca_fast.schema import PositiveInt

if TYPE_CHECKING:
    from reca_fast.evaluation.reconstruction import Reconstruction

POSITIONAL = {
    "images": "A picture, or any source that --data.source of `train` takes.",
}

PAIRS = "original", "drawn"
"""Folders of --pictures."""


@dataclass
class ReconstructOptions:
    images: Place
    out: Place = "reconstruction.png"
    """The file to write, a PNG whatever its name ends in: originals above, reconstructions below."""
    pictures: Place = ""
    """A folder to write each of them to on its own as well: original/0000.png and drawn/0000.png, which
    `evaluate --pictures FOLDER/drawn --reference FOLDER/original` compares.
    """
    count: PositiveInt = 4
    """How many pictures of the source are drawn: its first ones that can be read."""
    device: str = "auto"
    """auto, cpu or cuda."""
    model: ModelConfig = field(default_factory=ModelConfig)
    memory: DrawingMemory = field(default_factory=DrawingMemory)
    data: DataConfig = field(default_factory=lambda: DataConfig(text_dropout=0.0))
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(guidance=1.0))


def main(args: Sequence[str]) -> int:
    options = parse(ReconstructOptions, "reconstruct", args, positional=POSITIONAL)
    if Path(options.out).is_dir():
        raise UserError(f"{options.out} is a folder; set --out to the name of a PNG file.")
    check_sampling(options.sampling)
    from reca_fast.data.reasons import Reasons, printable
    from reca_fast.data.samples import SampleBuilder
    from reca_fast.data.sources import open_source
    from reca_fast.evaluation.grids import draw_comparison
    from reca_fast.evaluation.reconstruction import pick_samples, psnr, reconstruct
    from reca_fast.hardware import pick_device
    from reca_fast.memory import fill_to_draw
    from reca_fast.models import open_model

    if options.pictures:
        _refuse_others(Path(options.pictures), options.count)
    # A recipe may name a cache or conversations: of other pictures, which are not reconstructed.
    options.data = replace(options.data, source=options.images, cache="", instructions="", serve="one")
    model = open_model(options.model)
    source, passed_over = open_source(options.data), Reasons()
    builder = SampleBuilder(options.data, model.inputs(options.data))
    samples = pick_samples(source, builder, options.count, passed_over)
    if not samples:
        raise UserError(f"{options.images} holds no readable picture: {passed_over}.")
    print(model.says_weights())
    fill_to_draw(model, pick_device(options.device), options.memory)
    done = reconstruct(model, samples, options.sampling)
    with writing(Path(options.out)):
        draw_comparison(done, Path(options.out))
    if options.pictures:
        _write_each(done, Path(options.pictures))
    for reconstruction in done:
        print(f"{printable(reconstruction.key)}: {psnr([reconstruction]):.1f} dB")
    for fate, reasons in (("passed over", passed_over), ("ignored", source.ignored)):
        if reasons:
            print(f"{fate}: {reasons}")
    print(f"{options.out}: originals above, reconstructions below.")
    return 0


def _refuse_others(folder: Path, count: int) -> None:
    """Raise UserError when files of another run would stay beside the pictures, and be compared with them."""
    ours = {f"{number:04d}.png" for number in range(count)}
    for name in PAIRS:
        place = folder / name
        if place.is_dir() and (other := min({file.name for file in place.iterdir()} - ours, default="")):
            raise UserError(f"{place / other} is there already, and would be compared too; name another --pictures.")


def _write_each(done: "Sequence[Reconstruction]", folder: Path) -> None:
    """Write originals and what was drawn of them into two folders, under the same names."""
    from reca_fast.data.images import write_png

    for number, one in enumerate(done):
        for name, picture in zip(PAIRS, (one.original, one.drawn), strict=True):
            path = folder / name / f"{number:04d}.png"
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_png(picture, path)
