"""The page of the other models: a verdict on each claim, and what every arm scores, made from their JSON alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .other_arms import ARMS, CLAIMS
from .study import scores_of
from .study_page import NAMES, arm_row, claim_row, claims_told, places

PAGE = "others.md"
LEARNED = 0.5
"""Of prompts for one thing, the share that a model draws rightly if it is said to draw."""


def others_text(studies: Mapping[str, Mapping[str, Any]]) -> str:
    """The page as Markdown.

    Args:
        studies: name of a model -> its study, for the models that have one.
    """
    arms = {name: arm for study in studies.values() for name, arm in study["arms"].items()}
    lines = [
        "# The proof: the other models",
        "",
        "BAGEL, Harmon and Show-o at toy size: their own code, trained from nothing by the trainer, first to say the "
        "dense captions of one pool and to draw from the sparse ones of another (the base), then as the arms say. "
        "Neither sizes nor recipes were tuned until a claim fits. A claim of a model that draws nothing says nothing.",
        "",
        "```",
        *[_command(model, study) for model, study in studies.items()],
        "reca-fast study --render --out docs/proof   # the pages again, from the JSON alone",
        "```",
        "",
        *claims_told([claim_row(claim, arms, _lacks(claim.a)) for claim in CLAIMS]),
        "Understanding is the cross-entropy of a token of the dense captions of 256 validation pictures: lower is "
        "better. A caption may name two things in either order, so it is never 0.",
    ]
    for model, study in studies.items():
        lines += ["", f"## {model}", "", *_section(study)]
    return "\n".join(lines) + "\n"


def write_others(studies: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Write the page into a folder that exists.

    Raises:
        UserError: one of them holds something else than a study.
    """
    (folder / PAGE).write_text(others_text(studies))


def _lacks(arm: str) -> str:
    model = next(each.base for each in ARMS if each.name == arm)
    return f"a run of `reca-fast study --model {model}`"


def _command(model: str, study: Mapping[str, Any]) -> str:
    """The lines that make a model's base and run its arms."""
    asked = f"--seeds {len(study['seeds'])} --steps {study['steps']} --prompts {study['prompts']}"
    return (
        f"python -m reca_fast.proof.pretraining --model {model}   # its base\n"
        f"reca-fast study --model {model} {asked} --out docs/proof   # its arms; goes on where it was stopped"
    )


def _section(study: Mapping[str, Any]) -> list[str]:
    arms = study["arms"]
    trained = [seed for arm in arms.values() for seed in arm["seeds"] if seed["steps"]]
    samples = trained[0]["samples_per_step"] if trained else 0
    base = next((arm for name, arm in arms.items() if name.endswith("-none")), None)
    single = [each.value for each in scores_of(base, "single")] if base else []
    draws = bool(single) and sum(single) / len(single) >= LEARNED
    return [
        f"{study['steps']} steps of {samples:g} samples, {len(study['seeds'])} seeds, {study['prompts']} prompts for "
        f"each subtask. The base {'draws single things' if draws else '**has not learned to draw**'} "
        f"({sum(single) / len(single):.2f} of its single ones are right)."
        if single
        else "The base was not measured.",
        "",
        f"| arm | {' | '.join(NAMES.values())} | understanding | loss |",
        f"|---|{'---|' * (len(NAMES) + 2)}",
        *[arm_row(arm, (*NAMES, "understanding")) for arm in arms.values()],
        "",
        *[f"- `{name}`: {arm['what']} (recipe `{arm['recipe']}`)." for name, arm in arms.items()],
        "",
        f"Base {', '.join(study['bases'].values())} (xxh3 of the folder). {places(study)}",
    ]
