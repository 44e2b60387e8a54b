"""`python -m reca_fast.demo`: a tiny BAGEL is post-trained on crops of photographs, on a CPU, and what it draws of
others is shown before and after.

Nothing is downloaded: the photographs come with scikit-image, the checkpoint is written here, and its VAE is a file of
this package.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from reca_fast.errors import UserError

if TYPE_CHECKING:
    from reca_fast.config import RunConfig
    from reca_fast.evaluation.reconstruction import Reconstruction

HELD_OUT, TRAINING_PICTURES = 12, 120


def main() -> int:
    """Read the demo's own options and show it; the exit code is that of `demonstrate`, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m reca_fast.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/demo", help="folder that is written anew (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=None, help="training steps (default: the recipe's)")
    options = parser.parse_args()
    try:
        return demonstrate(Path(options.out), options.steps)
    except UserError as error:
        print(f"reca-fast demo: {error}", file=sys.stderr)
        return 2


def demonstrate(folder: Path, steps: int | None) -> int:
    """Write pictures and a checkpoint, measure how well it reconstructs, train, measure again, draw both.

    Args:
        folder: written anew; whatever was in it is lost.
        steps: of training; None takes the recipe's.

    Returns:
        0 when the held-out error fell, 1 when it did not, or the exit code of a verb that failed.
    """
    import torch

    from reca_fast.cli import main as reca_fast
    from reca_fast.cli.options import parse
    from reca_fast.config import RunConfig
    from reca_fast.demo.photos import write_crops
    from reca_fast.evaluation.grids import draw_grid
    from reca_fast.evaluation.reconstruction import blank_psnr, psnr
    from reca_fast.models.bagel.tiny import VAE_FILE, write_tiny_checkpoint

    started = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    base, trained, pictures = folder / "base", folder / "trained", folder / "pictures"
    write_tiny_checkpoint(base, vae_file=VAE_FILE)
    write_crops(pictures / "train", "train", TRAINING_PICTURES)
    write_crops(pictures / "held_out", "held_out", HELD_OUT)
    given = ["--config", "demo", "--model.path", str(base), "--data.source", str(pictures / "train")]
    encoding = ["cache", *given, "--out", str(folder / "cache")]
    training = ["train", *given, "--data.cache", str(folder / "cache"), "--out", str(folder)]
    training += ["--steps", str(steps)] if steps else []
    config = parse(RunConfig, "train", training[1:])
    torch.set_num_threads(1)  # layers this small gain nothing from a second thread and lose much to a busy core

    before = measure(config, base, pictures / "held_out")
    print(f"Before: {psnr(before):.1f} dB on {HELD_OUT} held-out crops.")
    for command in (encoding, training, ["export", str(folder), str(trained)]):
        print(f"Now `reca-fast {' '.join(command)}`:", flush=True)
        if code := reca_fast(command):
            return code
    after = measure(config, trained, pictures / "held_out")

    rows = [[r.original for r in before], [r.drawn for r in before], [r.drawn for r in after]]
    enlarged = [[p.repeat_interleave(2, 0).repeat_interleave(2, 1) for p in row] for row in rows]
    draw_grid(enlarged, folder / "before_after.png")
    print(
        f"\nHeld-out reconstruction, {HELD_OUT} crops of photographs never trained on: "
        f"{psnr(before):.1f} dB before, {psnr(after):.1f} dB after "
        f"(each crop's mean colour alone: {blank_psnr(after):.1f} dB). {time.perf_counter() - started:.0f} s in all.\n"
        f"Look at {folder}/before_after.png (originals, before, after) and {folder}/loss.png.\n"
        "Next, with the real checkpoint and your pictures:\n"
        "  reca-fast train --config bagel --model.path BAGEL-7B-MoT --data.source FOLDER_OF_PICTURES --out runs/bagel"
    )
    return 0 if psnr(after) > psnr(before) else 1


def measure(config: "RunConfig", checkpoint: Path, pictures: Path) -> "list[Reconstruction]":
    """What the model of a checkpoint folder makes of the held-out crops."""
    import torch

    from reca_fast.config import DataConfig, ModelConfig
    from reca_fast.data.samples import SampleBuilder
    from reca_fast.data.sources import open_source
    from reca_fast.evaluation.reconstruction import pick_samples, reconstruct
    from reca_fast.memory import fill_to_draw
    from reca_fast.models import open_model

    model = open_model(ModelConfig(**{**vars(config.model), "path": str(checkpoint)}))
    fill_to_draw(model, torch.device("cpu"))
    data = DataConfig(**{**vars(config.data), "source": str(pictures), "cache": "", "text_dropout": 0.0})
    samples = pick_samples(open_source(data), SampleBuilder(data, model.inputs(data)), HELD_OUT)
    with torch.inference_mode():  # a sixth faster than without gradients alone, where models are this small
        return reconstruct(model, samples, config.sampling)


if __name__ == "__main__":
    sys.exit(main())
