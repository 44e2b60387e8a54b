"""Prompts that ask for a description of a picture, made by a small grammar, and the hash that chooses among them.

Every choice is a pure function of (seed, epoch, key): no generator's state has to be saved or shared, so a resumed run
repeats its prompts whatever the number of processes.
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
    """All templates: distinct sentences in a fixed order, from three words to about fifty."""
    grammar = yaml.safe_load(resources.files("reca_fast.data").joinpath("grammar.yaml").read_text("utf-8"))
    kept: dict[str, None] = {}
    for pattern in grammar["patterns"]:
        sentences = _sentences(pattern["text"], grammar["slots"])
        sentences.sort(key=lambda sentence: stable_uniform("grammar", sentence))
        kept.update(dict.fromkeys(sentences[: pattern["take"]]))
    return tuple(kept)


def choose_template(seed: int, epoch: int, key: str) -> str:
    """The template for record `key` in `epoch`, drawn uniformly."""
    return templates()[int(stable_uniform("template", seed, epoch, key) * len(templates()))]


def choose_caption(caption: str | tuple[str, ...], seed: int, epoch: int, key: str) -> str:
    """The caption itself, or the one of several that record `key` uses in `epoch`, drawn uniformly."""
    if isinstance(caption, str):
        return caption
    return caption[int(stable_uniform("caption", seed, epoch, key) * len(caption))]


def _sentences(pattern: str, slots: dict[str, list[str]]) -> list[str]:
    """Every way to fill the pattern; a slot that occurs twice is filled twice."""
    pieces = SLOT.split(pattern)  # text, name of slot, text, ...
    choices = [slots[piece] if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


if __name__ == "__main__":
    print("\n".join(templates()))
