"""What the understanding is taught: pictures and texts of the toy world, each with the caption that is to be said."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reca_fast.data.templates import PLAIN, templates
from reca_fast.models.openuni.tokenizer import BARE_REQUEST, REQUEST, OpenUniTokenizer
from reca_fast.toy import (
    RELATIONS,
    SHAPES,
    SIDE,
    WORDS,
    Requirement,
    Scene,
    Wanted,
    render_many,
    requirement_of,
    scene_of,
)
from reca_fast.toy.captions import NUMBERS
from reca_fast.toy.world import PLACES

BRIEF = {
    "Name the shapes.": (False, False, False),
    "Name the shapes and colours.": (True, False, False),
    "Name the shapes and places.": (False, True, False),
    "Count the shapes.": (False, False, True),
}
"""Questions about a picture that ask for a part of what it shows -> whether colours, places and numbers are wanted."""
EVERYTHING = (True, True, True)


@dataclass(frozen=True)
class Lesson:
    """One step's: B pictures, each with a question; the answers as texts; and B other texts that leave things out."""

    pictures: Tensor  # uint8 [B, side, side, 3]
    prompts: list[list[int]]  # [3 B]: of the pictures, of their answers, of the other texts
    said: Tensor  # int64 [3 B, Q]: the word that each query is to say, one of `form`


class Lessons:
    """Draws lessons from scenes of a pool.

    Of what a picture shows, as far as it was asked for, and of a text of it, which names two things in either order,
    the queries fill the same form.

    Args:
        tokenizer: of the prompts; every word of the toy language is one of its tokens.
        picture_tokens: of the model.
        count: how many scenes there are.
        seed: of the draws.
    """

    def __init__(self, tokenizer: OpenUniTokenizer, picture_tokens: int, *, count: int, seed: int) -> None:
        self._tokenizer, self._picture_tokens = tokenizer, picture_tokens
        self._scenes = [scene_of("understanding", number) for number in range(count)]
        self._pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
        self._is_drawn = np.zeros(count, bool)
        self._seed = seed
        self._templates = [tokenizer.encode(text) for text in templates()]
        self._words = {word: words_of(tokenizer, word)[0] for word in WORDS} | {"": tokenizer.words["\n"][0]}

    def draw(self, number: int, size: int) -> Lesson:
        """Lesson `number`, of B = size pictures."""
        random = np.random.default_rng((self._seed, number))
        chosen, others = (random.integers(len(self._scenes), size=size) for _ in range(2))
        questions = [self._question(random) for _ in chosen]
        asked = [
            part_of(requirement_of(self._scenes[n]), *wanted) for n, (_, wanted) in zip(chosen, questions, strict=True)
        ]
        left = [_left_out(requirement_of(self._scenes[n]), random) for n in others]
        return Lesson(
            self._shown(chosen),
            [self.about(ids) for ids, _ in questions] + [self.request(_either(r, random).text) for r in asked + left],
            self.words(asked + asked + left),
        )

    def _shown(self, chosen: NDArray[np.int64]) -> Tensor:
        """The pictures of the chosen scenes. Each is drawn when it is first asked for."""
        new = [number for number in dict.fromkeys(chosen.tolist()) if not self._is_drawn[number]]
        if new:
            self._pictures[new] = render_many([self._scenes[number] for number in new], "understanding", new)
            self._is_drawn[new] = True
        return torch.from_numpy(self._pictures[chosen])

    def about(self, question: Sequence[int]) -> list[int]:
        """The prompt that shows a picture and asks something."""
        return self._tokenizer.about_picture(self._picture_tokens, question)

    def about_plain(self) -> list[int]:
        """The same with the template that a single one is."""
        return self.about(self._tokenizer.encode(PLAIN))

    def request(self, text: str) -> list[int]:
        """The prompt that asks for a picture of a text."""
        return self._tokenizer.request(self._tokenizer.encode(text))

    def words(self, told: Sequence[Requirement]) -> Tensor:
        """The words that the queries are to say, int64 [N, Q]: a line feed where the form is empty."""
        return torch.tensor([[self._words[word] for word in form(each)] for each in told])

    def _question(self, random: np.random.Generator) -> tuple[Sequence[int], tuple[bool, bool, bool]]:
        """A question, and which parts it asks for: a quarter the plain template, a quarter any, half of them brief."""
        kind = random.random()
        if kind < 0.25:
            return self._tokenizer.encode(PLAIN), EVERYTHING
        if kind < 0.5:
            return self._templates[random.integers(len(self._templates))], EVERYTHING
        question = list(BRIEF)[random.integers(len(BRIEF))]
        return self._tokenizer.encode(question), BRIEF[question]


def part_of(dense: Requirement, colours: bool, places: bool, numbers: bool) -> Requirement:
    """What a dense caption says, without that of which nothing is wanted."""
    things = tuple(Wanted(thing.shape, thing.colour if colours else None) for thing in dense.things)
    if dense.number > len(things):
        return Requirement(things, "", dense.number if numbers else 0)
    return Requirement(things, dense.relation if places else "", dense.number)


SLOTS = 13
"""Words of the form."""


def form(told: Requirement) -> tuple[str, ...]:
    """What is told as the words of a form, empty where nothing is told: a number; colour and shape of what is at the
    left, right, top and bottom; and colour and shape of up to two things of which no place is told.

    So the word for what is to be drawn somewhere always stands at the same place of the form.
    """
    told = in_order(told)
    number = "a" if told.number == len(told.things) else NUMBERS.get(told.number, "")
    things = {place: (thing.colour or "", thing.shape) for place, thing in zip(_places(told), told.things, strict=True)}
    rows = [things.get(place, ("", "")) for place in (*PLACES, "first", "second")]
    return (number, *(word for row in rows for word in row))


def _places(told: Requirement) -> tuple[str, ...]:
    """Where the things are, those of a relation in the order of `in_order`."""
    if not told.relation:
        return ("first", "second")[: len(told.things)]
    if len(told.things) == 1:
        return (told.relation,)
    return ("left", "right") if told.relation == "left of" else ("top", "bottom")


def in_order(told: Requirement) -> Requirement:
    """The same told in one order: the thing at the left or at the top first; without a relation, in that of SHAPES."""
    if len(told.things) < 2:
        return told
    first, second = told.things
    is_turned = told.relation in ("right of", "below") or (
        not told.relation and SHAPES.index(first.shape) > SHAPES.index(second.shape)
    )
    return _turned(told) if is_turned else told


def _turned(told: Requirement) -> Requirement:
    return Requirement(told.things[::-1], RELATIONS.get(told.relation, ""), told.number)


def _either(told: Requirement, random: np.random.Generator) -> Requirement:
    return _turned(told) if len(told.things) == 2 and random.random() < 0.5 else told


def _left_out(dense: Requirement, random: np.random.Generator) -> Requirement:
    """The same with each colour left out in half of the cases, and what is said of places or numbers too."""
    things = tuple(Wanted(t.shape, t.colour if random.random() < 0.5 else None) for t in dense.things)
    return part_of(replace(dense, things=things), True, random.random() < 0.5, random.random() < 0.5)


def words_of(tokenizer: OpenUniTokenizer, text: str) -> list[int]:
    """The tokens of a text as they stand in a request."""
    before = len(tokenizer.encode(REQUEST))
    return tokenizer.encode(REQUEST + text)[before:]


def shown(pool: str, numbers: range) -> tuple[list[Scene], Tensor]:
    """Scenes of a pool, and their pictures uint8 [N, side, side, 3]."""
    scenes = [scene_of(pool, number) for number in numbers]
    parts = [slice(start, start + 512) for start in range(0, len(scenes), 512)]
    drawn = [render_many(scenes[part], pool, numbers[part]) for part in parts]
    return scenes, torch.from_numpy(np.concatenate(drawn))


def texts_of_the_world() -> list[str]:
    """Texts that a tokenizer is trained on: the templates, and every word of the toy language so often that each
    becomes one token.
    """
    every_word = REQUEST + " ".join(WORDS)
    return [*templates(), *BRIEF, *[every_word] * len(templates()), BARE_REQUEST, "user\n", "assistant\n"]
