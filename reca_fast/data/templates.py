"""Templates: sentences that ask for a description of a picture, written out from the small grammar in grammar.yaml.

Which template a record gets in an epoch is a function of (seed, epoch, key) alone. No generator's state has to be saved
or shared, so a resumed run repeats its prompts, whatever the number of processes. `python -m reca_fast.data.templates`
prints all of them.
"""

import itertools
import re
from functools import lru_cache
from importlib import resources

import yaml

from reca_fast.randomness import stable_uniform

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


def choose_template(seed: int, epoch: int, key: str) -> str:
    """The template for the record `key` in `epoch`, drawn uniformly. `seed` is that of the data (`data.seed`)."""
    return templates()[int(stable_uniform("template", seed, epoch, key) * len(templates()))]


def _sentences(pattern: str, slots: dict[str, list[str]]) -> list[str]:
    """Every sentence that the pattern stands for. A slot that occurs twice takes two choices, which may differ."""
    pieces = SLOT.split(pattern)  # text, name of slot, text, ...
    choices = [slots[piece] if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


if __name__ == "__main__":
    print("\n".join(templates()))
