"""The page of a study: a verdict on each claim, every arm's scores, and pictures of them, made from its JSON alone."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reca_fast.evaluation.intervals import Estimate

from .arms import CLAIMS, LAYOUT, Claim
from .environment import told
from .study import scores_of
from .verdict import RULE, judge, mean, spread

NAMES = {
    "overall": "overall",
    "single": "single",
    "two": "two",
    "count": "count",
    "colour": "colour",
    "position": "position",
    "attribution": "attribution",
    "held_out": "held out",
    "dense": "dense",
    LAYOUT: "dense, colours and places",
    "reconstruction": "reconstruction",
}
"""Score -> its head in the table of arms."""
NOT_RUN = "not run"


def write_page(study: Mapping[str, Any], folder: Path) -> None:
    """Write README.md, scores.png and losses.png into a folder that exists.

    Raises:
        UserError: the study holds something else than a study.
    """
    (folder / "README.md").write_text(text_of(study))
    _draw_scores(study["arms"], folder / "scores.png")
    _draw_losses(study["arms"], folder / "losses.png")


def text_of(study: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    arms = study["arms"]
    first: list[Mapping[str, Any]] = [arm["seeds"][0] for arm in arms.values()]
    samples = next((seed["samples_per_step"] for seed in first if seed["steps"]), 0)
    asked = f"--seeds {len(study['seeds'])} --steps {study['steps']} --prompts {study['prompts']} --out docs/proof"
    lines = [
        "# The proof: RECA's claims on the toy world",
        "",
        f"Every arm starts from the same base and takes {study['steps']} steps of "
        f"{samples:g} samples each, with {len(study['seeds'])} seeds. A seed sets the order of "
        "the pictures, noise and times, and the noise of what is drawn afterwards. Each subtask has "
        f"{study['prompts']} prompts, judged by an exact detector ([the toy world](../toy.md)). Nothing is tuned for "
        "an arm: all share the recipe `toy`, and differ in what the table says.",
        "",
        "```",
        f"reca-fast study {asked}   # everything; goes on where it was stopped",
        "reca-fast study --render --out docs/proof   # this page and its pictures again, from study.json alone",
        "```",
        "",
        *claims_told([claim_row(claim, arms) for claim in CLAIMS]),
        "BAGEL, Harmon and Show-o, and conditions that only they have: [the other models](others.md).",
        "",
        "## Arms",
        "",
        "Mean ± standard deviation over the seeds. Scores are strict unless a column says otherwise.",
        "",
        f"| arm | {' | '.join(NAMES.values())} | loss |",
        f"|---|{'---|' * (len(NAMES) + 1)}",
        *[arm_row(arm) for arm in arms.values()],
        "",
        *[f"- `{name}`: {arm['what']} (recipe `{arm['recipe']}`)." for name, arm in arms.items()],
        "",
        "![scores of every arm](scores.png)",
        "",
        "![loss and score](losses.png)",
        "",
        "The loss does not tell which arm has learned what words mean: those of other conditions do not compare.",
        "",
        "## Understanding",
        "",
        _understanding(arms),
        "",
        "## Where this comes from",
        "",
        f"Bases: {', '.join(f'{name} {value}' for name, value in study['bases'].items())} (xxh3 of the folder).",
        places(study),
    ]
    return "\n".join(lines) + "\n"


def places(study: Mapping[str, Any]) -> str:
    """Where the trials of a study were run, in words."""
    return told(seed.get("environment", {}) for arm in study["arms"].values() for seed in arm["seeds"])


def _understanding(arms: Mapping[str, Any]) -> str:
    """Whether training left alone what it had to."""
    frozen = [(name, seed["frozen"]) for name, arm in arms.items() for seed in arm["seeds"] if "frozen" in seed]
    if changed := [f"{name}: {'; '.join(each['differing'])}" for name, each in frozen if each["differing"]]:
        return f"**Changed by training, though frozen**: {' '.join(changed)}"
    if not frozen:
        return "No training was run."
    tensors = min(each["tensors"] for _, each in frozen)
    return (
        f"All {tensors} frozen tensors, those of understanding among them, are byte-identical to the base's after "
        f"each of {len(frozen)} trainings: it understands what it did. "
        "With shared parameters: [the other models](others.md)."
    )


def claims_told(rows: Sequence[str]) -> list[str]:
    """The lines of the section of claims: a table of `claim_row`s and the rule of its verdicts."""
    return [
        "## Claims",
        "",
        "| claim: A is ahead of B | the paper | score | A | B | D ± 3 E | verdict |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        RULE,
        "",
    ]


def claim_row(claim: Claim, arms: Mapping[str, Any], lacks: str = "") -> str:
    """The row of a claim in a table.

    Args:
        arms: of a study's JSON, by name.
        lacks: what is missing where an arm is; the arms' names unless given.
    """
    head = f"| {claim.name} | {claim.paper} | {NAMES.get(claim.score, claim.score)} |"
    missing = [name for name in (claim.a, claim.b) if name not in arms]
    if missing:
        return f"{head} {claim.a} | {claim.b} | | {NOT_RUN}: lacks {lacks or ' and '.join(missing)} |"
    a, b = (scores_of(arms[name], claim.score) for name in (claim.a, claim.b))
    verdict = judge(a, b, lower_is_better=claim.lower_is_better)
    told = f"{head} {claim.a} {_spread(a)} | {claim.b} {_spread(b)} |"
    if verdict is None:
        return f"{told} | {NOT_RUN}: one seed |"
    return f"{told} {verdict.difference:+.3f} ± {verdict.noise:.3f} | **{verdict.word}** |"


def arm_row(arm: Mapping[str, Any], scores: Iterable[str] = NAMES) -> str:
    """The row of an arm in a table: its name, some scores and its loss."""
    cells = [_spread(scores_of(arm, score)) for score in scores]
    losses = scores_of(arm, "loss")
    return f"| {arm['name']} | {' | '.join(cells)} | {f'{mean(losses):.4f}' if losses else ''} |"


def _spread(scores: Sequence[Estimate]) -> str:
    return f"{mean(scores):.3f} ± {spread(scores):.3f}" if scores else ""


def _draw_scores(arms: Mapping[str, Any], path: Path) -> None:
    """Bars of the scores that claims are about, for every arm, with the spread over seeds and a dot for each seed."""
    from matplotlib.figure import Figure

    shown = {"overall": "overall", LAYOUT: "dense, colours and places", "reconstruction": "reconstruction"}
    figure = Figure(figsize=(10, 1.2 + 0.35 * len(arms)), layout="constrained")
    for axes, (score, title) in zip(figure.subplots(1, len(shown), sharey=True), shown.items(), strict=True):
        for row, arm in enumerate(arms.values()):
            scores = scores_of(arm, score)
            if scores:
                axes.barh(row, mean(scores), xerr=spread(scores), color="#9bb7d4", ecolor="#1f4e79", capsize=3)
                axes.plot([each.value for each in scores], [row] * len(scores), ".", color="#1f4e79", markersize=4)
        axes.set(title=title, xlim=(0, 1))
        axes.grid(alpha=0.3, axis="x")
        axes.set_yticks(range(len(arms)), list(arms))
    figure.gca().invert_yaxis()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_losses(arms: Mapping[str, Any], path: Path) -> None:
    """On the left each arm's smoothed loss over its steps (first seed), on the right its end beside a score."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (name, arm) in enumerate(arms.items()):
        curve = arm["seeds"][0].get("curve")
        if not curve:
            continue
        style = {"color": f"C{number % 10}", "label": name}
        left.plot([(i + 1) / len(curve) * arm["seeds"][0]["steps"] for i in range(len(curve))], curve, **style)
        losses, scores = scores_of(arm, "loss"), scores_of(arm, LAYOUT)
        right.plot([x.value for x in losses], [x.value for x in scores], "o^s"[number // 10 % 3], **style)
    left.set(xlabel="step", ylabel="loss, smoothed", yscale="log")
    right.set(xlabel="loss at the end", ylabel="dense, colours and places", ylim=(-0.02, 1.02))
    left.yaxis.set(
        major_locator=LogLocator(subs=(1, 1.5, 2, 3, 5, 7)), minor_locator=NullLocator(), major_formatter="{x:g}"
    )
    right.xaxis.set_major_locator(MaxNLocator(5))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    if left.lines:
        right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=110, metadata={"Software": None})
