"""Studies with a training that is made up: which trials run, what is resumed, and what the page says."""

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Event

import pytest

from reca_fast.cli.options import parse_stages
from reca_fast.config import RunConfig
from reca_fast.errors import UserError
from reca_fast.evaluation.intervals import share
from reca_fast.proof.arms import CLAIMS, Arm
from reca_fast.proof.schedule import Clock, run_all
from reca_fast.proof.study import Plan, collect, scores_of, settings_of, trials_of
from reca_fast.proof.study_page import text_of, write_page
from reca_fast.proof.trial import Failed, Stopped, finished, write_json
from tests.proof.made_up import measured

STAGES = "base: tiny-openuni\nsteps: 7\nstages: [{name: first}, {name: second, data: {limit: 8}}]\n"
PASSING = {
    "none": {"single": 0.8},
    "sft-sparse": {"single": 0.8, "colour": 0.5},
    "reca": {"single": 0.8, "colour": 0.6, "dense": 0.5, "reconstruction": 0.6},
}

RAN: Counter[str] = Counter()
"""Name of an arm -> how many trials of it were run."""


@cache
def parsed(*args: str) -> list[tuple[str, RunConfig]]:
    return parse_stages(RunConfig, "train", args)


def resolve(args) -> list[tuple[str, RunConfig]]:
    return parsed(*args)


@cache
def scores_made_up(name: str, count: int) -> dict:
    return measured(PASSING[name], count).report()["scores"]


@pytest.fixture
def plan(tmp_path, monkeypatch) -> Plan:
    monkeypatch.chdir(tmp_path)  # relative paths: the same command lines in every test, which are read once
    base = Path("base")
    base.mkdir()
    (base / "weights").write_text("numbers")
    return Plan(Path("runs"), {"openuni": base}, seeds=3, steps=20, count=20)


@pytest.fixture(scope="module")
def arms(tmp_path_factory) -> list[Arm]:
    stages = tmp_path_factory.mktemp("recipes") / "stages.yaml"
    stages.write_text(STAGES)
    return [
        Arm("none", "tiny-openuni", "the base", trains=False),
        Arm("sft-sparse", str(stages), "two stages"),
        Arm("reca", "tiny-openuni", "RECA"),
    ]


def pretend(trial, stop) -> dict:
    """A training of no time, whose model has learnt what PASSING says."""
    RAN[trial.name] += 1
    scores = scores_made_up(trial.name, trial.count)
    curve = {"steps": trial.steps, "samples_per_step": 64.0, "loss": 0.04, "curve": [0.3, 0.1, 0.04]}
    curve |= {"frozen": {"tensors": 9, "differing": []}}
    where = {"asked": trial.digest(), "environment": {"torch": "2"}}
    result = {
        "seed": trial.seed,
        **where,
        "seconds": 1.0,
        "scores": scores,
        **(curve if trial.trains else {"steps": 0}),
    }
    trial.folder.mkdir(parents=True, exist_ok=True)
    write_json(trial.folder / "trial.json", trial.asked())
    write_json(trial.folder / "scores.json", result)
    return result


@pytest.fixture(autouse=True)
def ran() -> Counter:
    RAN.clear()
    return RAN


def all_of(arms, plan) -> dict:
    return {arm: trials_of(arm, plan, resolve) for arm in arms}


def test_every_arm_takes_as_many_steps(arms, plan) -> None:
    trials = all_of(arms, plan)
    assert [[trial.steps for trial in some] for some in trials.values()] == [[0] * 3, [20] * 3, [20] * 3]
    staged = trials[arms[1]][2]
    assert [(name, config.steps, config.seed) for name, config in staged.stages] == [
        ("1-first", 10, 2),
        ("2-second", 10, 2),
    ]
    assert staged.run == plan.runs / "sft-sparse" / "seed-2" / "run" / "2-second"
    assert "--steps 10" in " ".join(staged.args) and staged.args[-4:] == ("--seed", "2", "--data.seed", "2")
    folders = {trial.cache.folder for arm in arms[1:] for trial in trials[arm]}
    assert len(folders) == 1 and trials[arms[0]][0].cache is None  # seeds, stages and steps share it
    assert resolve([*staged.args])[1][1].data == staged.stages[1][1].data  # what will run is what was planned
    with pytest.raises(UserError, match="has 2 stages, which cannot share 21 steps"):
        trials_of(arms[1], replace(plan, steps=21), resolve)


def test_what_is_finished_is_not_run_again(arms, plan, ran, capsys) -> None:
    trials = [trial for some in all_of(arms, plan).values() for trial in some]
    first = run_all(trials[:4], 1, pretend)
    results = run_all(trials, 2, pretend)
    assert ran == {"none": 3, "sft-sparse": 3, "reca": 3} and results[:4] == first
    assert [result["seed"] for result in results] == [0, 1, 2] * 3
    assert run_all(trials, 1, pretend) == results and sum(ran.values()) == 9
    said = capsys.readouterr().out
    assert said.count(": done; ") == 9 and said.count(": done; 0 trials left.") == 2


def test_other_settings_do_not_pass_for_the_same_trial(arms, plan) -> None:
    trial = trials_of(arms[2], plan, resolve)[0]
    pretend(trial, Event())
    for changed in (replace(plan, steps=40), replace(plan, count=10)):
        with pytest.raises(UserError, match="holds a trial of other settings than those of now; name another --runs"):
            finished(trials_of(arms[2], changed, resolve)[0])
    assert finished(trial)["steps"] == 20
    (trial.base / "weights").write_text("others")
    with pytest.raises(UserError, match="other settings"):
        finished(trials_of(arms[2], plan, resolve)[0])


def test_a_failure_keeps_no_other_trial_from_running(arms, plan, ran) -> None:
    def fails_once(trial, stop):
        if trial.name == "none" and trial.seed == 1:
            raise OSError("none, seed 1: no space left")  # or Failed, or what else a machine has
        return pretend(trial, stop)

    trials = [trial for some in all_of(arms, plan).values() for trial in some]
    with pytest.raises(UserError, match=r"1 of 9 trials failed\. none, seed 1: no space left"):
        run_all(trials, 2, fails_once)
    assert sum(ran.values()) == 8
    study = collect(all_of(arms, plan), settings_of(plan, "openuni"))
    assert study["arms"].keys() == {"sft-sparse", "reca"}  # an arm with a hole is no arm


def test_a_stop_ends_what_runs_and_begins_nothing(arms, plan, monkeypatch) -> None:
    """The trial that is asked raises Stopped, the others never start."""
    began = []

    class Asked:
        requested = False

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    asked = Asked()

    def until_stopped(trial, stop):
        began.append(trial.seed)
        asked.requested = True
        assert stop.wait(10)
        raise Stopped

    monkeypatch.setattr("reca_fast.proof.schedule.StopRequest", lambda: asked)
    with pytest.raises(KeyboardInterrupt):
        run_all(trials_of(arms[2], plan, resolve), 1, until_stopped)
    assert began == [0]


def test_the_time_left_follows_from_the_steps_that_went(arms, plan, monkeypatch) -> None:
    trials = trials_of(arms[2], plan, resolve)
    now = [100.0]
    monkeypatch.setattr("reca_fast.proof.schedule.time.monotonic", lambda: now[0])
    clock = Clock(trials, trials)
    whole = 3 * 120  # steps, and a measurement each
    assert clock.seconds_left(whole) is None
    now[0] += 60
    assert clock.seconds_left(whole * 3 / 4) == pytest.approx(180)


@pytest.fixture
def study(arms, plan) -> dict:
    trials = all_of(arms, plan)
    run_all([trial for some in trials.values() for trial in some], 1, pretend)
    return json.loads(json.dumps(collect(trials, settings_of(plan, "openuni"))))


def test_the_page_gives_each_claim_its_word(study) -> None:
    rows = {row.split(" | ")[0].lstrip("| "): row for row in text_of(study).split("\n") if row.startswith("| ")}
    assert rows["RECA improves its base"].endswith("| **holds** |")
    assert "none 0.133 ± 0.000" in rows["RECA improves its base"]
    assert rows["RECA beats training on sparse captions"].endswith("**within noise** |")
    assert "not run: lacks sft-dense" in rows["RECA beats training on dense captions"]
    text = text_of(study)
    assert "All 9 frozen tensors" in text and "after each of 6 trainings" in text
    assert "20 steps of 64 samples each, with 3 seeds" in text and "0.1333" not in text


def test_an_ordering_that_is_the_other_way_round_is_said_to_be(study) -> None:
    study["arms"]["none"]["seeds"], study["arms"]["reca"]["seeds"] = (
        study["arms"][name]["seeds"] for name in ("reca", "none")
    )
    row = next(row for row in text_of(study).split("\n") if row.startswith("| RECA improves its base"))
    assert row.endswith("| **does not hold** |")


def test_what_was_to_stay_frozen_and_did_not_is_told(study) -> None:
    study["arms"]["reca"]["seeds"][1]["frozen"]["differing"] = ["vision tower: 1 of 9 tensors DIFFER"]
    assert "**Changed by training, though frozen**: reca: vision tower: 1 of 9 tensors DIFFER" in text_of(study)


def test_pages_are_made_from_the_json_alone(study, tmp_path, reca_fast) -> None:
    write_page(study, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert {"README.md", "scores.png", "losses.png"} <= before.keys()
    out = tmp_path / "again"
    out.mkdir()
    (out / "study.json").write_text(json.dumps(study))
    said = reca_fast("study", "--render", "--out", out)
    assert said.code == 0 and "README.md has the verdicts" in said.out
    for name in ("README.md", "scores.png", "losses.png"):
        assert (out / name).read_bytes() == before[name]


def test_a_study_that_is_none_is_refused(tmp_path, reca_fast) -> None:
    assert "study.json is missing" in reca_fast("study", "--render", "--out", tmp_path).sentence
    assert (
        "study-bagel.json is missing" in reca_fast("study", "--render", "--model", "bagel", "--out", tmp_path).sentence
    )
    for name, more in (("study.json", []), ("regression.json", ["--regression"])):
        for text in ("{}", "[1]", '{"arms": 3, "runs": 3}'):
            (tmp_path / name).write_text(text)
            said = reca_fast("study", "--render", *more, "--out", tmp_path).sentence
            assert f"{name} does not hold the results of a study; remove it" in said
    assert "There is no arm 'rec', only none, " in reca_fast("study", "--arms", "[rec]").sentence


def test_scores_come_back_with_their_intervals(study) -> None:
    found = scores_of(study["arms"]["reca"], "dense")
    assert (
        found == [share(10, 20)] * 3 and [each.value for each in scores_of(study["arms"]["reca"], "loss")] == [0.04] * 3
    )
    assert scores_of(study["arms"]["none"], "loss") == []


def test_arms_and_claims_name_each_other() -> None:
    from reca_fast.proof.arms import ARMS, BASES

    names = [arm.name for arm in ARMS]
    assert len(set(names)) == len(names) and {arm.base for arm in ARMS} <= BASES.keys()
    for claim in CLAIMS:
        assert {claim.a, claim.b} <= set(names), claim.name


def test_what_is_done_has_its_page_though_a_trial_failed(arms, plan, monkeypatch, reca_fast, tmp_path) -> None:
    def fails_once(trial, stop):
        if trial.name == "none":
            raise Failed("none: no space left.")
        return pretend(trial, stop)

    monkeypatch.setattr("reca_fast.proof.trial.run_trial", fails_once)
    monkeypatch.setattr("reca_fast.proof.arms.ARMS", tuple(arms))
    said = reca_fast("study", "--base", "base", "--steps", "20", "--prompts", "20", "--out", tmp_path / "out")
    assert "3 of 9 trials failed. none: no space left" in said.sentence
    assert json.loads((tmp_path / "out" / "study.json").read_text())["arms"].keys() == {"sft-sparse", "reca"}
    assert "| reca | 0.233 ± 0.000 |" in (tmp_path / "out" / "README.md").read_text()


def test_results_of_another_machine_stay_on_the_page(arms, plan, study) -> None:
    """Trials that this folder of runs does not have, as long as they would be asked for the same."""
    elsewhere = replace(plan, runs=Path("others"))
    study["arms"]["none"]["seeds"][1]["asked"] = "of an older recipe"
    trials = all_of(arms, elsewhere)
    run_all(trials[arms[1]], 1, pretend)
    again = collect(trials, settings_of(elsewhere, "openuni"), study)
    assert again["arms"].keys() == {"sft-sparse", "reca"} and again["arms"]["reca"] == study["arms"]["reca"]


def test_results_of_other_settings_are_not_lost(arms, plan, study, monkeypatch, reca_fast, tmp_path) -> None:
    monkeypatch.setattr("reca_fast.proof.arms.ARMS", tuple(arms))
    monkeypatch.setattr("reca_fast.proof.trial.run_trial", pretend)
    out = tmp_path / "out"
    given = ["study", "--base", "base", "--runs", "runs", "--prompts", 20, "--out", out]
    out.mkdir()
    (out / "study.json").write_text(json.dumps(study))
    said = reca_fast(*given, "--steps", 40)
    assert "has results of other steps (20, now 40); name another --out" in said.sentence
    assert "runs holds a trial" not in said.sentence and json.loads((out / "study.json").read_text()) == study
    (out / "study.json").unlink()
    assert "holds a trial of other settings" in reca_fast(*given, "--steps", 40).sentence
    assert not (out / "study.json").exists()
    assert reca_fast(*given, "--steps", 41, "--runs", "odd", "--arms", "[reca]").code == 0  # two stages cannot share 41
    assert json.loads((out / "study.json").read_text())["arms"].keys() == {"reca"}
