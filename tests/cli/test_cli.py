"""The command line: fast help, recipes under options, and one sentence for every mistake."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import reca_fast as package
from reca_fast.checkpoints import CheckpointStore
from reca_fast.cli import VERBS, main
from reca_fast.cli.generate import GenerateOptions, read_prompts
from reca_fast.cli.habits import MEANT
from reca_fast.cli.options import RENAMED, option_names, parse
from reca_fast.cli.recipe import SHIPPED
from reca_fast.cli.reconstruct import ReconstructOptions
from reca_fast.cli.verify import VerifyOptions
from reca_fast.config import RunConfig
from reca_fast.errors import did_you_mean
from reca_fast.train.saved import SavedState
from tests.places import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")


def process(*command: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, **options)


def train_config(*args: str) -> RunConfig:
    return parse(RunConfig, "train", args)


# Help


def test_help_is_quick_and_light() -> None:
    """Under 0.7 s, without torch: the command is typed all day."""
    code = "import sys; from reca_fast.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = process("-c", code)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, "torch was imported"
        assert all(verb in done.stdout for verb in VERBS)
    assert min(seconds) < 0.7


def test_module_is_the_command() -> None:
    """`python -m reca_fast` and the installed script say and return the same."""
    script = Path(sys.executable).with_name("reca-fast")
    for args in ([], ["--version"], ["trian"]):
        module = process("-m", "reca_fast", *args)
        if script.exists():
            command = subprocess.run([script, *args], capture_output=True, text=True)
            assert (command.returncode, command.stdout, command.stderr) == (
                module.returncode,
                module.stdout,
                module.stderr,
            )
    assert module.returncode == 2 and "Did you mean 'train'?" in module.stderr


def test_version(reca_fast) -> None:
    assert reca_fast("--version").out == f"reca-fast {package.__version__}\n"


def field_docs(kind: type, prefix: str = ""):
    """(dotted name, documentation) of every setting, read from the source of the dataclasses."""
    import inspect

    source = inspect.getsource(kind)
    for field in dataclasses.fields(kind):
        inner = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(inner):
            yield from field_docs(type(inner), f"{prefix}{field.name}.")
        else:
            doc = re.search(rf'^    {field.name}:[^\n]*\n    """(.*?)"""', source, re.MULTILINE | re.DOTALL)
            assert doc, f"{kind.__name__}.{field.name} has no documentation"
            yield prefix + field.name, doc[1]


def test_train_help_shows_every_option_with_its_documentation(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    assert end.value.code == 0
    said = re.sub(r"\s+", "", capsys.readouterr().out)
    settings = dict(field_docs(RunConfig))
    assert len(settings) > 50 and "data.vae_resize.max_size" in settings
    for name, doc in settings.items():
        assert f"--{name}" in said, name
        assert re.sub(r"\s+", "", doc.replace("%%", "%")) in said, name


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    said = capsys.readouterr()
    assert end.value.code == 0 and said.out.startswith(f"usage: reca-fast {verb}") and not said.err


# Options and recipes


def test_defaults_are_the_authors_settings() -> None:
    config = train_config()
    assert config == RunConfig()
    assert (config.optim.lr, config.optim.betas, config.optim.eps) == (4e-5, (0.9, 0.95), 1e-15)
    assert (config.data.vit_resize.max_size, config.data.vae_resize.max_size) == (224, 1024)


def test_options_override_the_recipe_whatever_their_order(tmp_path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("optim: {lr: 1.0e-3, warmup_steps: 7}\ndata: {tasks: {t2i: 0.5}}\nsteps: 12\n")
    for args in (["--config", str(recipe), "--optim.lr", "2e-3"], ["--optim.lr=2e-3", f"--config={recipe}"]):
        config = train_config(*args)
        assert (config.optim.warmup_steps, config.data.tasks.t2i, config.steps) == (7, 0.5, 12)
        assert config.data.tasks.reca == 1.0 and config.optim.betas == (0.9, 0.95)
    assert train_config("--config", str(recipe), "--optim.lr", "2e-3").optim.lr == 2e-3


def test_later_recipe_wins(tmp_path) -> None:
    for name, text in (("a", "steps: 1\nseed: 5"), ("b", "steps: 2")):
        (tmp_path / f"{name}.yaml").write_text(text)
    config = train_config("--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"))
    assert (config.steps, config.seed) == (2, 5)


@pytest.mark.parametrize("name", [path.stem for path in SHIPPED.glob("*.yaml")])
def test_shipped_recipes(name) -> None:
    """They parse, by name, and what they name takes effect."""
    import yaml

    config, recipe = train_config("--config", name), yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
    assert config.steps == recipe["steps"] and config.optim.lr == recipe["optim"]["lr"]


def test_a_training_recipe_serves_every_verb(tiny_folder, reca_fast, tmp_path) -> None:
    """`generate` takes model and sampling from it and leaves the rest alone."""
    recipe = tmp_path / "run.yaml"
    recipe.write_text(f"model: {{path: {tiny_folder}, precision: fp32}}\nsampling: {{steps: 2}}\noptim: {{lr: 1.0}}\n")
    size = ["--width", "16", "--height", "24", "--device", "cpu"]
    said = reca_fast("generate", "--config", recipe, "--prompt", "a cat", "--out", tmp_path / "out", *size)
    lines = [f"weights: {tiny_folder / 'ema.safetensors'}", f"{tmp_path / 'out' / '0000.png'}: a cat"]
    assert said.code == 0 and said.out.splitlines() == lines
    assert Image.open(tmp_path / "out" / "0000.png").size == (16, 24)


def test_bare_switch_is_true() -> None:
    assert train_config("--profile").profile and train_config("--profile", "--steps", "3").profile
    assert not train_config("--profile", "false").profile
    assert train_config("--model.compile").model.compile


@pytest.mark.parametrize("given", ["a cat", '["a cat", "a red cup"]'])
def test_prompts(given, tiny_folder, reca_fast, tmp_path) -> None:
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('"from a file"\n\n{"prompt": "named", "id": "a/b"}\n')
    options = ["--width", 16, "--height", 16, "--sampling.steps", 2, "--device", "cpu", "--batch", 2]
    where = ["--model.path", tiny_folder, "--out", tmp_path, "--prompts", lines]
    said = reca_fast("generate", "--prompt", given, *options, *where)
    prompts = json.loads(given) if given.startswith("[") else [given]
    names = [f"{number:04d}" for number in range(len(prompts) + 1)] + ["a_b"]
    wanted = zip(names, [*prompts, "from a file", "named"], strict=True)
    assert said.out.splitlines()[1:] == [f"{tmp_path / name}.png: {prompt}" for name, prompt in wanted]


# Mistakes


MISTAKES = {
    "verb": ("trian", r"Unknown verb 'trian'\. Did you mean 'train'\?"),
    "option": ("train --optim.lrr 1", r"Unknown option 'optim\.lrr'\. Did you mean 'optim\.lr'\?"),
    "nested option": (
        "train --data.vae_resize.maxsize 3",
        r"Unknown option 'data\.vae_resize\.maxsize'\. Did you mean 'data\.vae_resize\.max_size'\?",
    ),
    "option of another verb": ("verify x --optim.lr 1", r"Unknown option 'optim\.lr'"),
    "number": ("train --steps many", r"steps.*many"),
    "fraction for a whole number": ("train --steps 1.5", r"steps.*1\.5"),
    "word for a switch": ("train --resume maybe", r"resume.*maybe"),
    "choice": ("train --model.precision fp16", r"model\.precision.*'fp32', 'bf16'.*fp16"),
    "pair": ("train --optim.betas 3", r"optim\.betas.*3"),
    "missing value": ("train --steps", r"--steps.*expected one argument"),
    "missing position": ("verify", "required: case"),
    "recipe": ("train --config nowhere", "no recipe 'nowhere': neither a file nor one of bagel, demo"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_on_the_command_line(mistake, reca_fast) -> None:
    command, message = MISTAKES[mistake]
    assert re.search(message, reca_fast(*command.split()).sentence)


RECIPE_MISTAKES = {
    "key": ("stepz: 3", r"Unknown option 'stepz'\. Did you mean 'steps'\?"),
    "nested key": ("optim: {lrr: 3}", r"Unknown option 'optim\.lrr'\. Did you mean 'optim\.lr'\?"),
    "deep key": (
        "data: {tasks: {recca: 1}}",
        r"Unknown option 'data\.tasks\.recca'\. Did you mean 'data\.tasks\.reca'\?",
    ),
    "type": ("steps: many", r"steps.*many"),
    "nested type": ("optim: {lr: fast}", r"optim\.lr.*fast"),
    "value for a group": ("optim: 3", "'optim' is a group of options"),
    "value for an inner group": ("data: {tasks: 3}", r"'data\.tasks' is a group of options"),
    "list": ("- steps", "holds no options"),
    "no YAML": ("steps: [", "is not YAML"),
    "no value": ("steps:", r"gives option 'steps' no value; write one, or remove the line"),
    "no nested value": ("optim:\n  lr:", r"gives option 'optim\.lr' no value"),
    "a lone tilde": ("out: ~", r"gives option 'out' no value; .* write ~/ for your home folder"),
    "no section": ("optim:", r"Option 'optim' is a group of options \(name: value\), not None"),
    "nesting": ("steps: " + "[" * 2000, "nests deeper than 50 levels"),
    "nesting of blocks": ("- " * 3000, "nests deeper than 50 levels"),
    "alias": ("a: &a [x, x]\nb: [*a, *a]", r"refers to another place of itself \(\*a\)"),
    "twice": ("steps: 1\nsteps: 2", "it sets 'steps' twice"),
    "number as a name": ("1: 2", "holds 1 in the place of an option's name"),
    "list as a name": ("? [a]\n: 2", "unhashable key"),
    "switch for a number": ("steps: yes", r"steps.*Expected a whole number.*True"),
    "switch for a fraction": ("optim: {lr: true}", r"optim\.lr.*Expected a number.*True"),
    "below the range": ("optim: {lr: -1}", r"optim\.lr=-1\.0: it must be at least 0"),
    "at the open end of the range": ("optim: {eps: 0}", r"optim\.eps=0\.0: it must be at most .* and above 0"),
    "beyond the range": (f"steps: {10**30}", r"steps=1000.*: it must be at least 1 and at most"),
    "digits without end": (f"steps: {'9' * 5000}", "is not YAML: Exceeds the limit"),
    "infinity": ("optim: {lr: .inf}", r"optim\.lr"),
    "a class to import": ("model: {class_path: antigravity}", r"Unknown option 'model\.class_path'"),
    "a tag": ("steps: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    "another recipe": ("config: other.yaml", "Unknown option 'config'"),
    "a file for a group": ("data: other.yaml", "'data' is a group of options"),
    "size": ("# " + "x" * 2**16, "is larger than 65,536 bytes"),
}


@pytest.mark.parametrize("mistake", RECIPE_MISTAKES)
def test_mistakes_in_a_recipe(mistake, reca_fast, tmp_path) -> None:
    text, message = RECIPE_MISTAKES[mistake]
    (tmp_path / "mine.yaml").write_text(text)
    assert re.search(message, reca_fast("train", "--config", tmp_path / "mine.yaml").sentence)


def test_a_recipe_imports_nothing(reca_fast, tmp_path, monkeypatch) -> None:
    """jsonargparse would import what class_path names, to see whether it is a subclass."""
    (tmp_path / "planted_module.py").write_text("raise SystemExit('planted')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.yaml").write_text("model: {class_path: planted_module.X}")
    assert "Unknown option" in reca_fast("train", "--config", tmp_path / "mine.yaml").sentence
    assert "Unknown option" in reca_fast("train", "--model", "{class_path: planted_module.X}").sentence


def test_a_group_in_one_value() -> None:
    config = train_config("--optim", "{lr: 1e-3, betas: [0.5, 0.6]}", "--data.tasks={t2i: 1}", "--optim.lr", "2e-3")
    assert (config.optim.lr, config.optim.betas, config.data.tasks.t2i) == (2e-3, (0.5, 0.6), 1.0)


def test_numbers_of_a_recipe_are_decimal(tmp_path) -> None:
    """YAML 1.1 would read octal, and take 1e-4 for text."""
    (tmp_path / "mine.yaml").write_text("steps: 0100\nseed: 1_000\noptim: {lr: 1e-4, weight_decay: .5}\nresume: no")
    config = train_config("--config", str(tmp_path / "mine.yaml"))
    assert (config.steps, config.seed, config.optim.lr, config.optim.weight_decay) == (100, 1000, 1e-4, 0.5)
    assert config.resume is False


def test_the_home_folder_in_paths(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("model: {path: ~/bagel}\nout: ~/run\ndata: {source: ~/pics/*.tar}\nsteps: 7")
    config = train_config("--config", "~/mine.yaml")
    assert (config.model.path, config.out, config.steps) == (f"{tmp_path}/bagel", f"{tmp_path}/run", 7)
    assert config.data.source == f"{tmp_path}/pics/*.tar"
    assert train_config("--model.path=~/other").model.path == f"{tmp_path}/other"
    options = parse(VerifyOptions, "verify", ["~/case", "--out", "~/x"], positional={"case": ""})
    assert (options.case, options.out) == (f"{tmp_path}/case", f"{tmp_path}/x")


@pytest.mark.parametrize("option", ["out", "data.source", "model.path"])
def test_a_path_with_nul_in_a_recipe(option, reca_fast, tmp_path) -> None:
    value = '"a\\0b"'
    for part in reversed(option.split(".")):
        value = f"{{{part}: {value}}}"
    (tmp_path / "mine.yaml").write_text(value)
    assert (
        f"{option}='a\\x00b': no path holds the character NUL"
        in reca_fast("train", "--config", tmp_path / "mine.yaml").sentence
    )


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


# What is nobody's mistake


@pytest.fixture
def failing(monkeypatch, tmp_path, reca_fast):
    """failing(error): what the command says when a verb raises it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def call(error: BaseException):
        def run(args):
            raise error

        monkeypatch.setattr("reca_fast.cli.doctor.run", run)
        return reca_fast("doctor", "--some", "thing")

    return call


def test_a_bug_says_how_to_report_it(failing, tmp_path, monkeypatch) -> None:
    said = failing(KeyError("lost"))
    assert said.code == 1 and re.fullmatch(r"reca-fast: this is a bug in reca-fast, .*KeyError: 'lost'.*\n", said.err)
    (report,) = tmp_path.glob("reca-fast-bug-*.txt")
    assert str(report) in said.err and "command: reca-fast doctor --some thing" in report.read_text()
    assert "Traceback" in report.read_text() and "Traceback" not in said.err
    monkeypatch.setenv("RECA_FAST_DEBUG", "1")
    assert "Traceback" in failing(KeyError("lost")).err
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert "report it with this text:" in failing(ValueError()).err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "the memory does not suffice .MemoryError.; take fewer"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), r"the memory does not suffice .*CUDA"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "the memory does not suffice"),
        (ModuleNotFoundError("No module", name="xformers"), "the package xformers is needed"),
        (PermissionError(13, "Permission denied", "/a/b"), r"/a/b cannot be used: Permission denied\."),
    ],
)
def test_failures_of_the_machine_are_one_sentence(error, sentence, failing) -> None:
    assert re.search(sentence, failing(error).sentence)


def test_names_from_outside_stay_on_one_line(reca_fast, tmp_path) -> None:
    said = reca_fast("verify", tmp_path / "a\nb\x1b[2J")
    assert "a b\\x1b[2J does not exist" in said.sentence


def test_interrupted_anywhere(failing) -> None:
    assert failing(KeyboardInterrupt()) == (130, "", "reca-fast: interrupted.\n")


def test_output_that_nobody_takes() -> None:
    command = [sys.executable, "-m", "reca_fast", "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone, open("/dev/full", "w") as full:
        broken = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True)
        full_disk = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (broken.returncode, broken.stderr) == (141, "")
    said = "reca-fast: a file or the output cannot be written: No space left on device.\n"
    assert (full_disk.returncode, full_disk.stderr) == (2, said)


def test_output_that_was_closed_or_goes_away_while_training(arguments, tmp_path) -> None:
    """Nothing takes the place of a closed stdout; a reader that is gone ends the run with the exit code of the rest."""
    command = [sys.executable, "-m", "reca_fast", "train", *map(str, arguments(tmp_path / "run"))]
    closed = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        broken = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert (broken.returncode, broken.stderr) == (141, "")


def test_a_refusal_that_nobody_can_be_told() -> None:
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-m", "reca_fast", "nothing"], stderr=full).returncode == 2


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


def test_nearest_name() -> None:
    assert did_you_mean("stepz", ["steps", "seed"]) == " Did you mean 'steps'?"
    assert did_you_mean("zzz", ["steps", "seed"]) == ""


@pytest.fixture
def try_train(tiny_folder, pictures, reca_fast, tmp_path):
    """try_train("--option", value, ...): a run that would work, but for these options."""
    usual = ["--config", "demo", "--device", "cpu", "--steps", "1", "--out", tmp_path / "run"]
    usual += ["--model.path", tiny_folder, "--data.source", pictures, "--sample_every", 0]
    return lambda *options: reca_fast("train", *usual, *options)


IMPOSSIBLE = {
    "i2t with a frozen side": ("--loss.i2t 0.1 --data.tasks.i2t 1", r"set --model\.freeze_und false"),
    "a task without weight": ("--data.tasks.t2i 1", r"data\.tasks\.t2i and loss\.t2i must both be above 0"),
    "a weight without task": ("--loss.t2i 1", r"data\.tasks\.t2i and loss\.t2i must both be above 0"),
    "no task at all": ("--data.tasks.reca 0 --loss.reca 0", r"at least one"),
    "no packs": ("--data.packs_per_step 0", r"data\.packs_per_step"),
    "no steps": ("--steps 0", r"steps=0: .*at least 1"),
    "dropout above 1": ("--data.text_dropout 1.5", r"data\.text_dropout=1\.5"),
    "stride": ("--data.vit_resize.stride 15", r"data\.vit_resize\.stride is 15; .* multiple of 14"),
    "size": ("--data.vae_resize.max_size 32", r"data\.vae_resize: min_size 64"),
    "backend": ("--model.attention flash_attn", r"attention='flash_attn' cannot run on cpu .* `reca-fast doctor`"),
    "kernels": ("--model.kernels triton", r"kernels=triton cannot run here: .* `reca-fast doctor`"),
    "device": ("--device tpu", r"device.*tpu"),
    "no checkpoint": ("--model.path=", r"No checkpoint given; set --model\.path"),
    "no data": ("--data.source=", r"data\.source"),
    "lost checkpoint": ("--model.path /nowhere/bagel", r"checkpoint folder /nowhere/bagel does not exist"),
    "lost data": ("--data.source /nowhere/pictures", r"/nowhere/pictures"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_runs(case, try_train) -> None:
    options, message = IMPOSSIBLE[case]
    assert re.search(message, try_train(*options.split()).sentence)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(try_train) -> None:
    assert "cuda" in try_train("--device", "cuda").sentence


def test_broken_folders(try_train, tiny_folder, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no pictures" in try_train("--data.source", tmp_path / "empty").sentence
    assert "it holds none of llm_config.json" in try_train("--model.path", tmp_path / "empty").sentence
    broken = Path(shutil.copytree(tiny_folder, tmp_path / "broken"))
    weights = load_file(broken / "ema.safetensors")
    save_file({k: x for k, x in weights.items() if k != "llm2vae.bias"}, broken / "ema.safetensors")
    assert "1 missing (llm2vae.bias)" in try_train("--model.path", broken).sentence
    (broken / "llm_config.json").rename(broken / "moved.json")
    assert "holds weights, but llm_config.json is missing" in try_train("--model.path", broken).sentence
    (broken / "moved.json").rename(broken / "llm_config.json")
    os.truncate(broken / "ema.safetensors", 3000)
    assert "not a whole safetensors file" in try_train("--model.path", broken).sentence
    (broken / "tokenizer.json").unlink()
    (broken / "vocab.json").unlink()
    assert "vocab.json missing" in try_train("--model.path", broken).sentence


PROMPTS_THAT_ARE_NONE = {
    "[" * 10_000 + "]" * 10_000: "nests deeper than 50 levels",
    '{"prompt": ' + '{"a": ' * 60 + "1" + "}" * 61: "nests deeper",
    "9" * 5000: "cannot be read as JSON",
    "NaN": "no 'prompt'",
    '{"prompt": ""}': "no 'prompt'",
    '{"prompt": ["x"]}': "no 'prompt'",
    '{"prompt": "x", "id": ".."}': r"the id '\.\.' names no file",
    '{"prompt": "x", "id": "."}': "names no file",
    '{"prompt": "x", "id": ["a"]}': "is neither text nor a whole number",
    '{"prompt": "x", "id": true}': "is neither text nor a whole number",
    '{"prompt": "x", "id": "' + "y" * 300 + '"}': "is longer than 200 bytes",
    '{"prompt": "x", "prompt": "y"}': "holds the name 'prompt' twice",
}


def test_impossible_drawings(tiny_folder, reca_fast, tmp_path) -> None:
    def generate(*options) -> str:
        where = ["--model.path", tiny_folder, "--out", tmp_path / "out", "--device", "cpu", "--sampling.steps", 2]
        return reca_fast("generate", *where, *options).sentence

    assert "No prompt given" in generate()
    assert f"{tmp_path / 'none.jsonl'} is missing; check --prompts" in generate("--prompts", tmp_path / "none.jsonl")
    assert f"{tmp_path} cannot be read: Is a directory" in generate("--prompts", tmp_path)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('"good"\n{"prompt": "good"}\nnot json\n')
    assert "bad.jsonl, line 3 cannot be read as JSON" in generate("--prompts", bad)
    for line, said in PROMPTS_THAT_ARE_NONE.items():
        bad.write_text(f'"good"\n{line}\n')
        assert re.search(rf"bad\.jsonl, line 2.*{said}", generate("--prompts", bad)), line
    bad.write_text('{"text": "no prompt"}\n')
    assert "bad.jsonl, line 1: no 'prompt'" in generate("--prompts", bad)
    assert "batch=0: it must be at least 1" in generate("--prompt", "x", "--batch", 0)
    assert "multiples of 8" in generate("--prompt", "x", "--width", 30)
    assert "sampling.steps" in generate("--prompt", "x", "--width", 16, "--height", 16, "--sampling.steps", 1)
    (tmp_path / "file").write_text("")
    bad.write_text('{"prompt": "one", "id": "a b"}\n{"prompt": "two", "id": "a_b"}\n')
    assert "two prompts would be drawn to a_b.png" in generate("--prompts", bad)
    bad.write_bytes('"caf\xe9"'.encode("latin-1"))
    assert "bad.jsonl is not UTF-8" in generate("--prompts", bad)
    assert "--prompt is given more than once" in generate("--prompt", "x", "--prompt=y")
    small = ["--prompt", "x", "--width", 16, "--height", 16]
    assert f"{tmp_path / 'file'} cannot be written: File exists" in generate(*small, "--out", tmp_path / "file")


def test_a_prompt_with_an_empty_id_is_numbered(tmp_path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "a", "id": ""}\n{"prompt": "b", "id": null}\n{"prompt": "c\u2028d", "id": 7}\n', "utf-8"
    )
    assert read_prompts(path, 2) == [("0002", "a"), ("0003", "b"), ("7", "c\u2028d")]


def test_a_base_that_has_moved(reca_fast, tmp_path) -> None:
    state = SavedState("0", 0, base="/nowhere/base", content={}, config={}, lanes={}, generators=[])
    CheckpointStore(tmp_path / "checkpoints").save(0, {"model": {"x": torch.ones(1)}}, asdict(state))
    said = reca_fast("export", tmp_path, tmp_path / "out").sentence
    assert "/nowhere/base, from which the run started, does not exist; set --base" in said
    said = reca_fast("export", tmp_path, tmp_path / "out", "--base", "nope").sentence
    assert "folder nope does not exist; set --base" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("x --sample text=4,vit=700x14,vae=16x16", "50x1 patch grid does not fit"),
        ("x --sample text=4,vit=14x14,vae=16x16,dropped --joint", "a sample whose text is kept"),
    ],
)
def test_impossible_cases(options, message, tmp_path) -> None:
    done = process(str(ROOT / "bench" / "make_case.py"), *options.split(), cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_reconstruct(tiny_folder, pictures, reca_fast, tmp_path) -> None:
    usual = ["--config", "demo", "--device", "cpu", "--model.path", tiny_folder, "--sampling.steps", 2]
    usual += ["--data.vae_resize.min_size", 16, "--count", 2, "--out", tmp_path / "grid.png"]
    said = reca_fast("reconstruct", pictures, *usual)
    assert said.code == 0, said.err
    assert (
        len(re.findall(r"^\d\d\.png: [\d.]+ dB$", said.out, re.MULTILINE)) == 2
        and Image.open(tmp_path / "grid.png").size
    )
    assert reca_fast("reconstruct", pictures, *usual, "--out", tmp_path / "grid.odd").code == 0
    assert Image.open(tmp_path / "grid.odd").format == "PNG"
    assert f"{tmp_path} is a folder" in reca_fast("reconstruct", pictures, *usual, "--out", tmp_path).sentence
    for count in (0, -1):
        assert (
            f"count={count}: it must be at least 1"
            in reca_fast("reconstruct", pictures, *usual, "--count", count).sentence
        )
    assert "/nowhere" in reca_fast("reconstruct", "/nowhere", *usual).sentence
    (tmp_path / "file").write_text("")
    assert (
        f"{tmp_path}/file/x.png cannot be written"
        in reca_fast("reconstruct", pictures, *usual, "--out", tmp_path / "file" / "x.png").sentence
    )


# The allocator of a GPU


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, "backend:native"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, None),
    ],
)
def test_segments_grow_unless_the_user_says_otherwise(given, expected) -> None:
    """Set before torch is imported, which is when it reads the variable."""
    code = "import os; from reca_fast.cli import main; main(['verify', '/nowhere'])\n"
    code += "import sys; print(os.environ.get('PYTORCH_ALLOC_CONF'))"
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")}
    assert process("-c", code, env=kept | given).stdout.splitlines()[-1] == str(expected)


# Doctor


def test_doctor(reca_fast) -> None:
    said = reca_fast("doctor")
    assert said.code == 0
    assert f"torch {torch.__version__}" in said.out and "attention on " in said.out
    for backend in ("torch", "flash_attn_3", "flash_attn_4", "flash_attn", "xformers", "sdpa", "eager"):
        assert re.search(rf"│ {backend} +│ (active|available|-) +│", said.out)
    assert len(re.findall("active", said.out)) == 2  # one per dtype
    for name in ("qk_norm_rope", "template_concat", "flow_matching_loss", "rms_norm", "swiglu"):
        assert re.search(rf"│ {name} +│ (triton|liger|reference) +│ \S+", said.out)


def test_doctor_says_why_the_kernels_asked_for_cannot_run(reca_fast, monkeypatch) -> None:
    monkeypatch.setenv("RECA_FAST_KERNELS", "turbo")
    assert "RECA_FAST_KERNELS='turbo': expected one of auto, triton, reference" in reca_fast("doctor").sentence
    monkeypatch.setenv("RECA_FAST_KERNELS", "reference")
    assert re.search(r"│ qk_norm_rope +│ reference +│ kernels=reference", reca_fast("doctor").out)
