"""Templates: sentences that ask for a description of a picture, written out from the small grammar in grammar.yaml.

Which template a record gets in an epoch is a function of (seed, epoch, key) alone. No generator's state has to be saved
or shared, so a resumed run repeats its prompts, whatever the number of processes. `python -m reca_fast.data.templates`
prints all of them.
"""

import itertools
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

import yaml

from reca_fast.errors import UserError
from reca_fast.randomness import stable_uniform

PLAIN = "Describe this image in detail."
"""The template that a single one is."""
SLOT = re.compile(r"\{(\w+)\}")


@lru_cache(maxsize=1)
def templates() -> tuple[str, ...]:
    """All templates: distinct sentences of three to about fifty words, always in the same order."""
    grammar = yaml.safe_load(resources.files("reca_fast.data").joinpath("grammar.yaml").read_text("utf-8"))
    kept: dict[str, None] = {}
    for pattern in grammar["patterns"]:
        sentences = _sentences(pattern["text"], grammar["slots"])
        sentences.sort(key=lambda sentence: stable_uniform("grammar", sentence))
        kept.update(dict.fromkeys(sentences[: pattern["take"]]))
    return tuple(kept)


@lru_cache(maxsize=8)
def some_templates(count: int) -> tuple[str, ...]:
    """As many templates as asked for, or all for 0. Fewer are a part of more, and PLAIN comes first.

    Raises:
        UserError: there are not so many.
    """
    every = templates()
    if count > len(every):
        raise UserError(
            f"data.templates={count}: there are {len(every)}; set it to {len(every)} or less, or 0 for all."
        )
    shuffled = sorted(every, key=lambda sentence: (sentence != PLAIN, stable_uniform("templates", sentence)))
    return tuple(shuffled[:count]) if count else every


def choose_template(seed: int, epoch: int, key: str, among: Sequence[str]) -> str:
    """The one of some templates for the record `key` in `epoch`, drawn uniformly. `seed` is that of the data."""
    return among[int(stable_uniform("template", seed, epoch, key) * len(among))]


def _sentences(pattern: str, slots: dict[str, list[str]]) -> list[str]:
    """Every sentence that the pattern stands for. A slot that occurs twice takes two choices, which may differ."""
    pieces = SLOT.split(pattern)  # text, name of slot, text, ...
    choices = [slots[piece] if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


if __name__ == "__main__":
    print("\n".join(templates()))
