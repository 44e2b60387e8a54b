"""Options: their defaults, their old names, and one sentence that leads from a mistyped name to the right one."""

import re

import pytest

from reca_fast.cli.generate import GenerateOptions
from reca_fast.cli.habits import MEANT
from reca_fast.cli.options import RENAMED, option_names, parse
from reca_fast.cli.reconstruct import ReconstructOptions
from reca_fast.cli.verify import VerifyOptions
from reca_fast.config import RunConfig
from reca_fast.errors import did_you_mean

pytestmark = pytest.mark.usefixtures("one_thread")


def train_config(*args: str) -> RunConfig:
    return parse(RunConfig, "train", args)


def test_defaults_are_the_authors_settings() -> None:
    config = train_config()
    assert config == RunConfig()
    assert (config.optim.lr, config.optim.betas, config.optim.eps) == (4e-5, (0.9, 0.95), 1e-15)
    assert (config.data.condition_resize.max_size, config.data.target_resize.max_size) == (224, 1024)


def test_bare_switch_is_true() -> None:
    assert train_config("--profile").profile and train_config("--profile", "--steps", "3").profile
    assert not train_config("--profile", "false").profile
    assert train_config("--memory.compile").memory.compile


MISTAKES = {
    "verb": ("trian", r"Unknown verb 'trian'\. Did you mean 'train'\?"),
    "option": ("train --optim.lrr 1", r"Unknown option 'optim\.lrr'\. Did you mean 'optim\.lr'\?"),
    "nested option": (
        "train --data.target_resize.maxsize 3",
        r"Unknown option 'data\.target_resize\.maxsize'\. Did you mean 'data\.target_resize\.max_size'\?",
    ),
    "option of another verb": ("verify x --optim.lr 1", r"Unknown option 'optim\.lr'"),
    "number": ("train --steps many", r"steps.*many"),
    "fraction for a whole number": ("train --steps 1.5", r"steps.*1\.5"),
    "word for a switch": ("train --resume maybe", r"resume.*maybe"),
    "choice": ("train --model.precision fp16", r"model\.precision.*'fp32', 'bf16'.*fp16"),
    "pair": ("train --optim.betas 3", r"optim\.betas.*3"),
    "missing value": ("train --steps", r"--steps.*expected one argument"),
    "missing position": ("verify", "required: case"),
    "recipe": ("train --config nowhere", "no recipe 'nowhere': neither a file nor one of auxiliary, bagel, "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_on_the_command_line(mistake, reca_fast) -> None:
    command, message = MISTAKES[mistake]
    assert re.search(message, reca_fast(*command.split()).sentence)


def test_a_group_in_one_value() -> None:
    config = train_config("--optim", "{lr: 1e-3, betas: [0.5, 0.6]}", "--data.tasks={t2i: 1}", "--optim.lr", "2e-3")
    assert (config.optim.lr, config.optim.betas, config.data.tasks.t2i) == (2e-3, (0.5, 0.6), 1.0)


def test_the_home_folder_in_paths(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("model: {path: ~/bagel}\nout: ~/run\ndata: {source: ~/pics/*.tar}\nsteps: 7")
    config = train_config("--config", "~/mine.yaml")
    assert (config.model.path, config.out, config.steps) == (f"{tmp_path}/bagel", f"{tmp_path}/run", 7)
    assert config.data.source == f"{tmp_path}/pics/*.tar"
    assert train_config("--model.path=~/other").model.path == f"{tmp_path}/other"
    options = parse(VerifyOptions, "verify", ["~/case", "--out", "~/x"], positional={"case": ""})
    assert (options.case, options.out) == (f"{tmp_path}/case", f"{tmp_path}/x")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr", "optim.lr"),
        ("learning_rate", "optim.lr"),
        ("learning-rate", "optim.lr"),
        ("batch_size", "data.tokens_per_pack"),
        ("per_device_train_batch_size", "data.tokens_per_pack"),
        ("output_dir", "out"),
        ("epochs", "steps"),
        ("num_epochs", "steps"),
        ("max_steps", "steps"),
        ("gradient_accumulation_steps", "data.packs_per_step"),
        ("bf16", "model.precision"),
        ("resume_from_checkpoint", "resume"),
        ("data_path", "data.source"),
        ("model_name_or_path", "model.path"),
        ("weight_decay", "optim.weight_decay"),
        ("num_workers", "data.workers"),
        ("save-every", "save_every"),
    ],
)
def test_habits_of_other_trainers(typed, meant, reca_fast) -> None:
    assert f"Unknown option {typed!r}. Did you mean {meant!r}?" in reca_fast("train", f"--{typed}", "1").err


OLD = {"step_count": "steps", "data.random_seed": "data.seed", "data.small": "data.tasks"}


@pytest.mark.parametrize(("old", "new"), [*OLD.items(), ("data.small.reca", "data.tasks.reca")])
def test_an_old_name_is_refused_with_the_new_one(old, new, reca_fast, tmp_path, monkeypatch) -> None:
    """Old names of two options and a group, made up for this test."""
    monkeypatch.setattr("reca_fast.cli.options.RENAMED", OLD)
    sentence = f"reca-fast: The option {old!r} is now called {new!r}; write the new name.\n"
    assert reca_fast("train", f"--{old}", "1").sentence == sentence
    assert reca_fast("train", f"--{old}=1").sentence == sentence
    value = "1" if old != "data.small" else "{reca: 1}"
    for part in reversed(old.split(".")):
        value = f"{{{part}: {value}}}"
    (tmp_path / "mine.yaml").write_text(value)
    told = reca_fast("train", "--config", tmp_path / "mine.yaml").sentence
    assert told == sentence or (old == "data.small.reca" and "'data.small' is now called 'data.tasks'" in told)


def test_every_new_name_is_an_option() -> None:
    options = {name for kind in (RunConfig, GenerateOptions, ReconstructOptions) for name, _ in option_names(kind)}
    names = options | {name.rpartition(".")[0] for name in options}
    assert set(RENAMED.values()) <= names and not RENAMED.keys() & names


@pytest.mark.parametrize(
    ("out", "says"),
    [
        (
            "~nobody-of-this-name/x",
            "out=~nobody-of-this-name/x: there is no home folder ~nobody-of-this-name; write ./~",
        ),
        ("a\udcff", '"out" holds bytes that are no UTF-8'),
    ],
)
def test_names_that_lead_nowhere(out, says, reca_fast) -> None:
    assert says in reca_fast("train", "--out", out).sentence


def test_what_needs_no_option(reca_fast) -> None:
    assert "Unknown option 'wandb'. Metrics go to metrics.jsonl" in reca_fast("train", "--wandb").sentence
    assert "'3' stands where an option" in reca_fast("train", "3").sentence
    assert "Did you mean --config bagel?" in reca_fast("train", "bagel").sentence
    assert "Did you mean --config my.yaml?" in reca_fast("train", "my.yaml").sentence
    assert "Did you mean 'batch'?" in reca_fast("generate", "--batch_size", "3").sentence


def test_every_habit_leads_to_an_option() -> None:
    options = {name for kind in (RunConfig, GenerateOptions) for name, _ in option_names(kind)} | {"config"}
    meant = {target for targets, _ in MEANT.values() for target in targets.split()}
    assert meant <= options and not MEANT.keys() & options


def test_nearest_name_is_proposed_when_there_is_one() -> None:
    assert did_you_mean("stepz", ["steps", "seed"]) == " Did you mean 'steps'?"
    assert did_you_mean("zzz", ["steps", "seed"]) == ""
