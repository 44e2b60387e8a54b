"""`reca-fast study`: the paper's ablations on the toy world, as verdicts, tables and pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from reca_fast.cli.options import parse, parse_stages
from reca_fast.config import Place, RunConfig
from reca_fast.errors import UserError, did_you_mean, writing
from reca_fast.schema import PositiveInt, Range, read_json

Share = Annotated[int, Range(1, 64)]


@dataclass
class StudyOptions:
    """What a study runs and where its pages go. Each arm and seed is a run in a folder of its own: what is finished is
    not run again, so the same command goes on where it was stopped or killed.
    """

    arms: tuple[str, ...] = ()
    """Which arms are run, as in '[none, reca, sft-sparse]'; all of them unless given. Arms that the folder of runs
    holds already stay on the page.
    """
    seeds: Annotated[int, Range(1, 100)] = 3
    """Seeds of each arm; the reference of the regression has at least 5."""
    steps: PositiveInt = 400
    """Steps of each arm, of as many samples each; arms of two stages take half of them in each."""
    prompts: Annotated[int, Range(1, 200)] = 100
    """Prompts for each subtask."""
    regression: bool = False
    """Run the regression in place of the ablations: the recipe by every fast path, beside its reference's seeds."""
    out: Place = "docs/proof"
    """Folder for the results (JSON), their pages and pictures."""
    runs: Place = "runs/study"
    """Folder for the runs, and for the caches of encoded pictures that they share. These stay there for whatever is run
    next; they may be removed at any time, and are made again.
    """
    model: Literal["openuni", "bagel", "harmon", "showo", "showo-vq"] = "openuni"
    """Whose arms are run; the other models are reported on a page of their own."""
    base: Place = ""
    """Checkpoint folder that the arms start from; unless given, the shipped one of OpenUni, or of another model the one
    that `python -m reca_fast.proof.pretraining --model` made under runs.
    """
    jobs: Share = 1
    """How many runs go side by side, each on one thread."""
    render: bool = False
    """Make the pages again from the results in --out, and run nothing."""


def main(args: Sequence[str]) -> int:
    """Exit code 0 when all was run, or 1 where a fast path of the regression ended outside a band."""
    options = parse(StudyOptions, "study", args)
    return _regression(options) if options.regression else _ablations(options)


def _ablations(options: StudyOptions) -> int:
    from reca_fast.proof import arms, other_arms
    from reca_fast.proof.schedule import run_all
    from reca_fast.proof.study import Plan, collect, trials_of
    from reca_fast.proof.trial import run_trial, write_json

    out, results = Path(options.out), Path(options.out) / _results(options.model)
    if not options.render:
        its = [arm for arm in (*arms.ARMS, *other_arms.ARMS) if arm.base == options.model]
        known = [arm.name for arm in its]
        for name in options.arms:
            if name not in known:
                raise UserError(f"There is no arm {name!r}, only {', '.join(known)}.{did_you_mean(name, known)}")
        bases = arms.BASES | other_arms.BASES | ({options.model: Path(options.base)} if options.base else {})
        plan = Plan(Path(options.runs), bases, options.seeds, options.steps, options.prompts)
        trials = {arm: trials_of(arm, plan, _resolve) for arm in its}
        chosen = [arm for arm in its if arm.name in (options.arms or known)]
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            failure = _failure(lambda: run_all([t for arm in chosen for t in trials[arm]], options.jobs, run_trial))
            write_json(results, collect(trials, plan))
    else:
        failure = None
    with writing(out):
        _write_pages(out, results)
    if failure:
        raise failure
    page = "README.md" if options.model == "openuni" else "others.md"
    print(f"{out}/{page} has the verdicts, {results} all scores.")
    return 0


def _results(model: str) -> str:
    return "study.json" if model == "openuni" else f"study-{model}.json"


def _write_pages(out: Path, results: Path) -> None:
    """Write the pages of all studies in a folder, that in `results` among them."""
    from reca_fast.proof.other_arms import BASES
    from reca_fast.proof.others_page import write_others
    from reca_fast.proof.study_page import write_page

    if results.name == _results("openuni") or (out / _results("openuni")).is_file():
        write_page(read_json(out / _results("openuni")), out)
    there = [model for model in BASES if (out / _results(model)).is_file()]
    write_others({model: read_json(out / _results(model)) for model in there}, out)


def _regression(options: StudyOptions) -> int:
    from reca_fast.proof.arms import BASES
    from reca_fast.proof.regression import REFERENCE, Plan, collect, trials_of
    from reca_fast.proof.regression_page import write_page
    from reca_fast.proof.schedule import run_all
    from reca_fast.proof.trial import run_trial, write_json

    out, results = Path(options.out), Path(options.out) / "regression.json"
    if not options.render:
        base = Path(options.base) if options.base else BASES["openuni"]
        plan = Plan(Path(options.runs), base, max(5, options.seeds), options.steps, options.prompts)
        trials = trials_of(plan, _resolve)
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            failure = _failure(lambda: run_all(trials, options.jobs, run_trial))
            regression = collect(trials, plan)
            if failure and len(regression["runs"].get(REFERENCE, [])) < plan.seeds:
                raise failure  # without a band there is no page
            write_json(results, regression)
    else:
        failure = None
    with writing(out):
        wrong = write_page(read_json(results), out)
    if failure:
        raise failure
    print(f"{out}/regression.md has the bands, {results} all figures.")
    if wrong:
        print(f"Not where they have to be: {', '.join(wrong)}.")
    return 1 if wrong else 0


def _failure(run: Callable[[], object]) -> UserError | None:
    """What failed among trials of which the others are done and worth a page; None where nothing did."""
    try:
        run()
    except UserError as error:
        return error
    return None


def _resolve(args: Sequence[str]) -> list[tuple[str, RunConfig]]:
    return parse_stages(RunConfig, "train", args)
