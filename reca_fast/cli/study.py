"""`reca-fast study`: the paper's ablations on the toy world, as verdicts, tables and pictures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from reca_fast.cli.options import parse, parse_stages
from reca_fast.config import Place, RunConfig
from reca_fast.errors import UserError, did_you_mean, writing
from reca_fast.schema import PositiveInt, Range, read_json, shown

if TYPE_CHECKING:
    from reca_fast.proof.arms import Arm
    from reca_fast.proof.study import Plan
    from reca_fast.proof.trial import Trial

Share = Annotated[int, Range(1, 64)]


@dataclass
class StudyOptions:
    """What a study runs and where its pages go. Each arm and seed is a run in a folder of its own: what is finished is
    not run again, so the same command goes on where it was stopped or killed.
    """

    arms: tuple[str, ...] = ()
    """Which arms are run, as in '[none, reca, sft-sparse]'; all of them unless given. Arms that the folder of runs or
    the results in --out hold already stay on the page.
    """
    seeds: Annotated[int, Range(1, 100)] = 3
    """Seeds of each arm; the reference of the regression has at least 10."""
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
    from reca_fast.proof.study import Plan, collect, settings_of
    from reca_fast.proof.trial import run_trial, write_json

    out, results = Path(options.out), Path(options.out) / _results(options.model)
    failure = None
    if not options.render:
        its = [arm for arm in (*arms.ARMS, *other_arms.ARMS) if arm.base == options.model]
        known = [arm.name for arm in its]
        for name in options.arms:
            if name not in known:
                raise UserError(f"There is no arm {name!r}, only {', '.join(known)}.{did_you_mean(name, known)}")
        bases = arms.BASES | other_arms.BASES | ({options.model: Path(options.base)} if options.base else {})
        plan = Plan(Path(options.runs), bases, options.seeds, options.steps, options.prompts)
        chosen = [arm for arm in its if arm.name in (options.arms or known)]
        trials = {arm: _planned(arm, plan, must=arm in chosen) for arm in its}
        settings = settings_of(plan, options.model)
        earlier = _earlier(results, settings)
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        with writing(plan.runs):
            failure = _failure(lambda: run_all([t for arm in chosen for t in trials[arm]], options.jobs, run_trial))
        with writing(out):
            write_json(results, collect(trials, settings, earlier))
    with writing(out):
        _write_pages(out, results)
    if failure:
        raise failure
    page = "README.md" if options.model == "openuni" else "others.md"
    print(f"{out}/{page} has the verdicts, {results} all scores.")
    return 0


def _planned(arm: "Arm", plan: "Plan", *, must: bool) -> "list[Trial]":
    """The trials of an arm; none where it cannot be run by this plan, and need not, as it is not asked for."""
    from reca_fast.proof.study import trials_of

    try:
        return trials_of(arm, plan, _resolve)
    except UserError:
        if must:
            raise
        return []


def _earlier(results: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The results that are there already, of the same settings.

    Raises:
        UserError: they are of others, and would be lost.
    """
    if not results.is_file():
        return None
    earlier = read_json(results)
    with _read_as_results(results):
        for name, now in settings.items():
            if earlier[name] != now:
                raise UserError(
                    f"{results} has results of other {name} ({shown(earlier[name])}, now {shown(now)}); name another "
                    "--out, or remove it."
                )
    return dict(earlier)


@contextmanager
def _read_as_results(*files: Path) -> Iterator[None]:
    """A context in which results that are none become a UserError, which names the files that they may be in."""
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError):
        names = " or ".join(map(str, files))
        raise UserError(f"{names} does not hold the results of a study; remove it, and run the study again.") from None


def _results(model: str) -> str:
    return "study.json" if model == "openuni" else f"study-{model}.json"


def _write_pages(out: Path, results: Path) -> None:
    """Write the pages of all studies in a folder, that in `results` among them."""
    from reca_fast.proof.other_arms import BASES
    from reca_fast.proof.others_page import write_others
    from reca_fast.proof.study_page import write_page

    read_json(results)  # what was asked for has to be there
    if (study := out / _results("openuni")).is_file():
        with _read_as_results(study):
            write_page(read_json(study), out)
    there = {model: out / _results(model) for model in BASES if (out / _results(model)).is_file()}
    with _read_as_results(*there.values()):
        write_others({model: read_json(path) for model, path in there.items()}, out)


def _regression(options: StudyOptions) -> int:
    from reca_fast.proof.arms import BASES
    from reca_fast.proof.regression import REFERENCE, SEEDS, Plan, collect, settings_of, trials_of
    from reca_fast.proof.regression_page import write_page
    from reca_fast.proof.schedule import run_all
    from reca_fast.proof.trial import run_trial, write_json

    out, results = Path(options.out), Path(options.out) / "regression.json"
    failure = None
    if not options.render:
        base = Path(options.base) if options.base else BASES["openuni"]
        plan = Plan(Path(options.runs), base, max(SEEDS, options.seeds), options.steps, options.prompts)
        trials = trials_of(plan, _resolve)
        settings = settings_of(plan)
        earlier = _earlier(results, settings)
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        with writing(plan.runs):
            failure = _failure(lambda: run_all(trials, options.jobs, run_trial))
        regression = collect(trials, settings, earlier)
        if failure and len(regression["runs"].get(REFERENCE, [])) < plan.seeds:
            raise failure  # without a band there is no page
        with writing(out):
            write_json(results, regression)
    with writing(out), _read_as_results(results):
        wrong = write_page(read_json(results), out)
    if failure:
        raise failure
    print(f"{out}/regression.md has the bands, {results} all figures.")
    if wrong:
        print(f"Not where they have to be: {', '.join(wrong)}.")
    return 1 if wrong else 0


def _failure(run: Callable[[], object]) -> UserError | None:
    """What failed among trials of which the others are done and worth a page; None where nothing did."""
    from reca_fast.proof.trial import Failed

    try:
        run()
    except Failed as error:
        return error
    return None


def _resolve(args: Sequence[str]) -> list[tuple[str, RunConfig]]:
    return parse_stages(RunConfig, "train", args)
