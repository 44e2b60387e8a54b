"""The toy world: a procedural world of coloured shapes with an exact detector, where RECA's effect shows in minutes."""

from .captions import WORDS, Requirement, Wanted, canonical, captions_of, parse, requirement_of
from .detector import Found, detect
from .prompts import EXTRA, RECONSTRUCTION, SUBTASKS, Prompt, prompts, reconstruction_of
from .scores import colour_layout, colours_only, score, verdicts
from .world import COLOURS, POOLS, RELATIONS, SHAPES, SIDE, Scene, Thing, pool_named, render, render_many, scene_of

__all__ = [
    "COLOURS",
    "EXTRA",
    "POOLS",
    "RECONSTRUCTION",
    "RELATIONS",
    "SHAPES",
    "SIDE",
    "SUBTASKS",
    "WORDS",
    "Found",
    "Prompt",
    "Requirement",
    "Scene",
    "Thing",
    "Wanted",
    "canonical",
    "captions_of",
    "colour_layout",
    "colours_only",
    "detect",
    "parse",
    "pool_named",
    "prompts",
    "reconstruction_of",
    "render",
    "render_many",
    "requirement_of",
    "scene_of",
    "score",
    "verdicts",
]
