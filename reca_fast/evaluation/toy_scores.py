"""The scores of a model in the toy world, with their intervals."""

from collections.abc import Iterable, Sequence

from reca_fast.evaluation.intervals import Estimate, mean_of_shares, share
from reca_fast.toy import SUBTASKS, Found, Prompt, verdicts

OVERALL = "overall"


def summarize(drawn: Iterable[tuple[Prompt, Sequence[Found]]]) -> dict[str, Estimate]:
    """The scores of a model from its pictures: of each picture its prompt and what was found in it.

    Returns:
        A share for each name that `verdicts` gives: subtasks, and lenient scores like `dense.colour_layout`; and
        `overall`, the mean of SUBTASKS, where pictures of all of them were drawn.
    """
    passed: dict[str, list[bool]] = {}
    for prompt, found in drawn:
        for name, verdict in verdicts(prompt, found).items():
            passed.setdefault(name, []).append(verdict)
    scores = {name: share(sum(some), len(some)) for name, some in passed.items()}
    if all(subtask in scores for subtask in SUBTASKS):
        scores[OVERALL] = mean_of_shares([scores[subtask] for subtask in SUBTASKS])
    return scores
