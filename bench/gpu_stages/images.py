"""The data path: JPEG files to packed samples, as the recipe has it, on this machine's cores."""

import os
import tempfile
import time
from pathlib import Path

from reca_fast.config import DataConfig, ResizeConfig
from reca_fast.data.loader import PackLoader
from reca_fast.data.samples import SampleBuilder
from reca_fast.data.sources import open_source
from reca_fast.models.bagel.config import BAGEL_7B_MOT
from reca_fast.models.bagel.inputs import BagelInputs
from reca_fast.models.bagel.tokenizer import BagelTokenizer

from .photographs import drawn
from .report import Report

MARKERS = BagelTokenizer(bos=1, eos=2, start_of_image=3, end_of_image=4, qwen=None)
NEEDED = 4.0
"""Pictures per second that the 14B step consumes on one H100 at half of its peak, twice over."""


class Words(BagelInputs):
    """BAGEL's inputs without the files of its tokenizer."""

    def tokenize(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]


def hand_in(report: Report) -> None:
    with tempfile.TemporaryDirectory() as folder:
        side = 128 if report.rehearsal else 1280
        for number in range(8 if report.rehearsal else 24):
            drawn(number, side).save(Path(folder, f"{number:02d}.jpg"), quality=90)
        cores = os.cpu_count() or 1
        for workers in dict.fromkeys((1, 2, min(8, cores), cores)):
            report.attempt(f"{workers} threads", measure, report, Path(folder), workers)


def measure(report: Report, folder: Path, workers: int) -> None:
    """The loader's own threads decode, resize and pack; a pack is the recipe's, eight pictures of 1024 x 1024."""
    tokens = 2000 if report.rehearsal else 35_328
    sizes = ResizeConfig(64, 64, 16) if report.rehearsal else ResizeConfig(1024, 512, 16)
    config = DataConfig(
        source=str(folder), target_resize=sizes, tokens_per_pack=tokens, workers=workers, prefetch=2 * workers
    )
    inputs = Words(BAGEL_7B_MOT, MARKERS, config)
    builder = SampleBuilder(config, inputs)
    with PackLoader(open_source(config), builder, config, inputs.collate, range(1)) as loader:
        next(loader)
        count, start = 0, time.perf_counter()
        while (took := time.perf_counter() - start) < (0.5 if report.rehearsal else 1.5):
            count += sum(len(pack.keys) for pack in next(loader))
    speed = count / took
    if report.rehearsal:
        report.figure(f"{workers} threads", speed, "pictures/s")
    else:
        report.at_least(f"{workers} threads", speed, NEEDED, "pictures/s")
