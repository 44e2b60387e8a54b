"""The toy world: a procedural world of coloured shapes with an exact detector, where RECA's effect shows in minutes."""

from .captions import WORDS, Requirement, Wanted, canonical, captions_of, parse, requirement_of
from .world import COLOURS, POOLS, RELATIONS, SHAPES, SIDE, Scene, Thing, pool_named, render, render_many, scene_of

__all__ = [
    "COLOURS",
    "POOLS",
    "RELATIONS",
    "SHAPES",
    "SIDE",
    "WORDS",
    "Requirement",
    "Scene",
    "Thing",
    "Wanted",
    "canonical",
    "captions_of",
    "parse",
    "pool_named",
    "render",
    "render_many",
    "requirement_of",
    "scene_of",
]
