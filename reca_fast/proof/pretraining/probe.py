"""How well pictures and texts share one space: a linear probe that was fitted on the states of texts reads pictures,
and the other way round. Where both are near 1, whatever learns to draw from one can draw from the other.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from reca_fast.toy import Requirement, canonical, parse

from .lessons import Lessons, shown
from .understanding import Understanding

RIDGE = 1e-2
"""Added to the variances of the states, as a share of their mean."""
ATTRIBUTES: dict[str, Callable[[Requirement], object]] = {
    "shape of the first": lambda told: told.things[0].shape,
    "colour of the first": lambda told: told.things[0].colour,
    "shape of the second": lambda told: told.things[1].shape if len(told.things) > 1 else None,
    "colour of the second": lambda told: told.things[1].colour if len(told.things) > 1 else None,
    "place or relation": lambda told: told.relation,
    "number": lambda told: told.number,
}
"""What is read, of the canonical caption."""


@torch.no_grad()
def transfer(
    understanding: Understanding, lessons: Lessons, picture: int, *, fitted: int = 2048, read: int = 512
) -> dict[str, tuple[float, float]]:
    """Attribute -> accuracy of a probe from texts to pictures, and of one from pictures to texts.

    Args:
        picture: the id that stands for a token of a picture.
        fitted: how many scenes of `understanding` the probes are fitted on, others than those of the lessons.
        read: how many scenes of `validation` are read.
    """
    beyond = range(2**20, 2**20 + fitted)
    parts = [
        _states(understanding, lessons, picture, *each)
        for each in (("understanding", beyond), ("validation", range(read)))
    ]
    (of_pictures, of_texts, told), (pictures, texts, true) = parts
    found = {}
    for name, attribute in ATTRIBUTES.items():
        classes = sorted({attribute(each) for each in told}, key=str)
        labels, wanted = (torch.tensor([classes.index(attribute(r)) for r in some]) for some in (told, true))
        found[name] = tuple(
            (_probe(states, labels, len(classes))(others).argmax(-1) == wanted).float().mean().item()
            for states, others in ((of_texts, pictures), (of_pictures, texts))
        )
    return {name: (forward, back) for name, (forward, back) in found.items()}


def _states(
    understanding: Understanding, lessons: Lessons, picture: int, pool: str, numbers: range
) -> tuple[Tensor, Tensor, list[Requirement]]:
    """The states of pictures and of their canonical captions, [N, Q * width] each, and what those say."""
    scenes, pictures = shown(pool, numbers)
    captions = [canonical(scene) for scene in scenes]
    seen, read = [], []
    for start in range(0, len(scenes), 128):
        part = slice(start, start + 128)
        seen.append(understanding.states([lessons.about_plain()] * len(captions[part]), pictures[part], picture))
        read.append(understanding.states([lessons.request(text) for text in captions[part]], pictures[:0], picture))
    return torch.cat(seen).flatten(1), torch.cat(read).flatten(1), [parse(caption) for caption in captions]


def _probe(states: Tensor, labels: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    """A linear classifier of states [N, K], by ridge regression on the classes."""
    mean = states.mean(0)
    centred = (states - mean).double()
    gram = centred.mT @ centred / len(states)
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    targets = F.one_hot(labels, classes).double()
    weights = torch.linalg.solve(gram, centred.mT @ (targets - targets.mean(0)) / len(states)).float()
    offset = targets.mean(0).float()
    return lambda others: (others - mean) @ weights + offset
