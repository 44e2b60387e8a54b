"""Measurements of models that do not exist: pictures of the toy world that pass or fail as told."""

from collections.abc import Mapping

import torch

from reca_fast.config import SamplingConfig
from reca_fast.proof.measure import ASKED, Drawn, Measured
from reca_fast.toy import RECONSTRUCTION, Found, prompts, reconstruction_of, render, scene_of


def measured(passing: Mapping[str, float], count: int = 20, subtasks: tuple[str, ...] = ASKED) -> Measured:
    """What a model would have drawn of which so large a share of each subtask's pictures is right, 0 unless given."""
    drawn = []
    for subtask in subtasks:
        scenes = [scene_of("validation", number) for number in range(count)]
        again = subtask == RECONSTRUCTION
        asked = [reconstruction_of(scene) for scene in scenes] if again else prompts(subtask, count)
        for number, (prompt, scene) in enumerate(zip(asked, scenes, strict=True)):
            picture = torch.from_numpy(render(scene, "validation", number))
            right = number < round(passing.get(subtask, 0.0) * count)
            drawn.append(Drawn(prompt, picture, found_in(prompt) if right else [], picture if again else None))
    return Measured(drawn, 0, SamplingConfig())


def found_in(prompt) -> list[Found]:
    """Things as a picture has them that shows what a prompt says."""
    wanted, relation = prompt.requirement.things, prompt.requirement.relation
    right, down = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}.get(relation, (1, 0))
    places = {"left": (0.2, 0.5), "right": (0.8, 0.5), "top": (0.5, 0.2), "bottom": (0.5, 0.8)}
    if len(wanted) == 2:
        middles = [(0.5 + 0.2 * right, 0.5 + 0.2 * down), (0.5 - 0.2 * right, 0.5 - 0.2 * down)]
        return [Found(thing.shape, thing.colour or "red", *at, 20) for thing, at in zip(wanted, middles, strict=True)]
    number = prompt.requirement.number or 2
    at = places.get(relation, (0.5, 0.5))
    return [Found(wanted[0].shape, wanted[0].colour or "red", *at, 20)] * number
