"""Scores of pictures in files: each beside its reference, its prompt, or both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from reca_fast.data.images import resize
from reca_fast.errors import UserError
from reca_fast.evaluation.intervals import Estimate, mean
from reca_fast.evaluation.judges import ClipScore, DinoSimilarity
from reca_fast.evaluation.lpips import Lpips
from reca_fast.evaluation.pictures import read_picture
from reca_fast.evaluation.similarity import psnr_of, ssim_of


@dataclass(frozen=True)
class Judges:
    """What gives scores beside PSNR and SSIM; None where nobody asked for it."""

    clip: ClipScore | None = None  # needs prompts
    lpips: Lpips | None = None  # needs references, as does dino
    dino: DinoSimilarity | None = None


@dataclass(frozen=True)
class Subject:
    """A picture to be scored, by the name that it has in the report."""

    name: str
    file: Path
    reference: Path | None = None
    prompt: str | None = None


@dataclass
class Scores:
    """The scores of every picture."""

    each: dict[str, dict[str, float]] = field(default_factory=dict)
    """Name of a picture -> its scores: psnr in dB, ssim, lpips, dino_similarity, clip_score."""

    def means(self) -> dict[str, Estimate]:
        """Each score's mean over the pictures that have it, with its interval."""
        names = dict.fromkeys(name for scores in self.each.values() for name in scores)
        return {name: mean([scores[name] for scores in self.each.values() if name in scores]) for name in names}


def score_pictures(
    subjects: Sequence[Subject],
    judges: Judges,
    *,
    resized: bool = False,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score pictures one by one; none depends on what is scored with it.

    Args:
        resized: bring a reference of another size to the size of its picture; otherwise it is refused.
        batch: how many a judge looks at together.
        progress: called with the number of pictures that are done and that of all of them.

    Raises:
        UserError: a picture cannot be read, is too small, or differs in size from its reference.
    """
    out = Scores()
    for start in range(0, len(subjects), batch):
        part = subjects[start : start + batch]
        pictures = [read_picture(subject.file) for subject in part]
        references = [_reference(*each, resized) for each in zip(part, pictures, strict=True)]
        scores: list[dict[str, float]] = [{} for _ in part]
        pairs = [(i, pictures[i], seen) for i, seen in enumerate(references) if seen is not None]
        for i, picture, reference in pairs:
            scores[i] |= _beside(part[i].file, picture, reference, judges.lpips)
        if judges.dino is not None and pairs:
            _, drawn, seen = zip(*pairs, strict=True)
            for (i, *_), value in zip(pairs, judges.dino(drawn, seen), strict=True):
                scores[i]["dino_similarity"] = value
        told = [(i, subject.prompt) for i, subject in enumerate(part) if subject.prompt is not None]
        if judges.clip is not None and told:
            values = judges.clip([pictures[i] for i, _ in told], [prompt for _, prompt in told])
            for (i, _), value in zip(told, values, strict=True):
                scores[i]["clip_score"] = value
        out.each |= {subject.name: its for subject, its in zip(part, scores, strict=True)}
        if progress is not None:
            progress(len(out.each), len(subjects))
    return out


def _beside(file: Path, picture: Tensor, reference: Tensor, lpips: Lpips | None) -> dict[str, float]:
    """The scores of one picture beside its reference, which has its size."""
    try:
        scores = {"psnr": psnr_of(picture, reference), "ssim": ssim_of(picture, reference)}
        return scores if lpips is None else scores | {"lpips": lpips(picture, reference)}
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _reference(subject: Subject, picture: Tensor, resized: bool) -> Tensor | None:
    if subject.reference is None:
        return None
    reference = read_picture(subject.reference)
    if reference.shape == picture.shape:
        return reference
    if not resized:
        (height, width), (rows, columns) = picture.shape[:2], reference.shape[:2]
        raise UserError(
            f"{subject.file} has {width}x{height} pixels and its reference {subject.reference} {columns}x{rows}; "
            "give --resize true to bring references to the size of their pictures."
        )
    return resize(reference, (picture.shape[1], picture.shape[0]), "exact")
