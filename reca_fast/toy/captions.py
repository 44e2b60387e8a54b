"""The language of the toy world: captions of scenes, and what a text asks of a picture.

A dense caption says everything that a scene is. A sparse one names the shapes and seldom more, as the captions of real
pictures do.
"""

from dataclasses import dataclass

import numpy as np

from .world import COLOURS, PLACES, RELATIONS, SHAPES, Scene, Thing, numbers, pool_named

NUMBERS = {2: "two", 3: "three", 4: "four"}
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
WORDS = (
    *("a", "and", "at", "the", "of"),
    *("left", "right", "top", "bottom", "above", "below"),
    *NUMBERS.values(),
    *COLOURS,
    *SHAPES,
    *PLURALS.values(),
)
"""Every word that a caption or a prompt may have."""
SAYS_PLACE, SAYS_NUMBER = 0.05, 0.1
"""How often a sparse caption says where things stand, and how many they are."""


@dataclass(frozen=True)
class Wanted:
    """A thing that a text asks for; colour is None where any will do."""

    shape: str
    colour: str | None = None


@dataclass(frozen=True)
class Requirement:
    """What a text asks of a picture.

    `things` names one thing or two different ones; `relation` is as in Scene, and empty where any will do; `number` is
    how many things the picture has to show in all, and 0 for two to four equal ones.
    """

    things: tuple[Wanted, ...]
    relation: str = ""
    number: int = 1

    @property
    def text(self) -> str:
        """The text that asks for this."""
        first, *others = self.things
        if self.number == 0 or (self.number > 1 and not others):
            return _words(NUMBERS.get(self.number), first.colour, PLURALS[first.shape])
        if not others:
            return _words(_one(first), f"at the {self.relation}" if self.relation else None)
        return _words(_one(first), self.relation or "and", _one(others[0]))


def _words(*words: str | None) -> str:
    return " ".join(word for word in words if word)


def _one(thing: Wanted) -> str:
    return _words("a", thing.colour, thing.shape)


def requirement_of(scene: Scene) -> Requirement:
    """Everything that a scene is, as its dense caption says it."""
    is_many = not scene.relation
    things = scene.things[:1] if is_many else scene.things
    return Requirement(tuple(Wanted(t.shape, t.colour) for t in things), scene.relation, len(scene.things))


def captions_of(scene: Scene, pool: str, index: int) -> dict[str, str]:
    """The sparse and the dense caption of a picture, a function of the arguments alone.

    Both name two things in the same order, which is drawn.

    Raises:
        UserError: there is no such pool.
    """
    mentions = pool_named(pool).mentions
    random = numbers("captions", pool, index)
    dense = requirement_of(turned(scene) if random.random() < 0.5 else scene)
    return {"sparse": _left_out(dense, mentions, random).text, "dense": dense.text}


def _left_out(dense: Requirement, mentions: float, random: np.random.Generator) -> Requirement:
    things = tuple(Wanted(t.shape, t.colour if random.random() < mentions else None) for t in dense.things)
    if dense.number > len(things):
        return Requirement(things, "", dense.number if random.random() < SAYS_NUMBER else 0)
    return Requirement(things, dense.relation if random.random() < SAYS_PLACE else "", dense.number)


def turned(scene: Scene) -> Scene:
    """The same scene, told from the other of its two things; scenes of one kind of thing stay as they are."""
    if scene.relation not in RELATIONS:
        return scene
    return Scene(scene.things[::-1], RELATIONS[scene.relation])


def canonical(scene: Scene) -> str:
    """The one dense caption of a scene that begins with the thing at the left or at the top."""
    return requirement_of(turned(scene) if scene.relation in ("right of", "below") else scene).text


def scene_as(requirement: Requirement) -> Scene:
    """The scene that a dense caption tells.

    Raises:
        ValueError: the caption leaves something open.
    """
    things = tuple(Thing(t.shape, t.colour) for t in requirement.things if t.colour)
    is_many = requirement.number > len(requirement.things)
    if len(things) < len(requirement.things) or not (requirement.relation or is_many):
        raise ValueError(f"{requirement.text!r} tells more than one scene")
    return Scene(things * requirement.number if is_many else things, requirement.relation)


def parse(text: str) -> Requirement:
    """What a text asks of a picture.

    Raises:
        ValueError: it is no text of the toy language.
    """
    for requirement in _readings(text.split()):
        if requirement.text == text:
            return requirement
    raise ValueError(f"{text!r} is no caption of the toy world")


def _readings(words: list[str]) -> list[Requirement]:
    """What the words may ask for; the caller checks that it is told by the same words."""
    kinds = {word: shape for shape in SHAPES for word in (shape, PLURALS[shape])}
    things: list[Wanted] = []
    colour = None
    for word in words:
        if word in COLOURS:
            colour = word
        elif word in kinds:
            things.append(Wanted(kinds[word], colour))
            colour = None
    if not 1 <= len(things) <= 2:
        return []
    told = " ".join(words)
    if len(things) == 2:
        relation = next((relation for relation in RELATIONS if f" {relation} " in told), "")
        return [Requirement(tuple(things), relation, 2)]
    if words[-1] in PLURALS.values():
        number = next((number for number, word in NUMBERS.items() if word == words[0]), 0)
        return [Requirement(tuple(things), "", number)]
    return [Requirement(tuple(things), words[-1] if words[-1] in PLACES else "", 1)]
