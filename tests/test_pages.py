"""What the pages say is there: files, tests, options, targets, rooms. A page that has fallen behind fails here."""

import pkgutil
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from reca_fast.cli.compare import CompareOptions
from reca_fast.cli.evaluate import EvaluateOptions
from reca_fast.cli.export import ExportOptions
from reca_fast.cli.generate import GenerateOptions
from reca_fast.cli.options import option_names
from reca_fast.cli.plan import PlanOptions
from reca_fast.cli.reconstruct import ReconstructOptions
from reca_fast.cli.study import StudyOptions
from reca_fast.cli.verify import VerifyOptions
from reca_fast.config import RunConfig
from tests.places import ROOT
from tests.source_tree import tracked

PAGES = [path for path in tracked("*.md") if "fixtures" not in path.parts]
OURS = ("reca_fast/", "kernels/", "bench/", "tests/", "docs/")
WRITTEN_LATER = ("bench/results/", "mymodel", "softcap")
"""What benchmarks write when somebody runs them; the model and the operation that readers of docs/adding-... add."""
ELSEWHERE = {
    "sampling.preset",  # stands for several options
    *("config", "help", "version", "print_config"),  # of every verb, or of the command itself
    *("nproc_per_node", "no-build-isolation", "only-binary", "use-ema", "pid", "origin-model-path"),  # other programs'
    *("max_latent_size", "numprocesses", "maxprocesses", "durations"),
    *("nnodes", "rdzv_backend", "rdzv_endpoint", "rdzv_id"),  # torchrun's
    "res-path",  # DPG-Bench's reader
    *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal", "requeue"),  # Slurm's
}


def code(page: Path) -> str:
    """Everything in a page that is set as code."""
    text = page.read_text()
    return "\n".join([*re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S), *re.findall(r"`([^`\n]+)`", text)])


def named(page: Path, pattern: str) -> set[str]:
    return set(re.findall(pattern, code(page)))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@every_page
def test_files_that_a_page_names_are_there(page: Path) -> None:
    """A file, a folder, or a pattern that fits at least one."""
    paths = {word.rstrip(".") for word in named(page, r"(?<![\w./~-])([a-z_]+/[\w./*-]*)") if word.startswith(OURS)}
    paths = {path for path in paths if not any(later in path for later in WRITTEN_LATER)}
    assert not {path for path in paths if not any(ROOT.glob(path.rstrip("/")))}


@every_page
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    assert not {link for link in links if "://" not in link and not (page.parent / link).exists()}


@every_page
def test_tests_that_a_page_names_exist(page: Path) -> None:
    for path, name in set(re.findall(r"(tests/[\w/]+\.py)::(\w+)", page.read_text())):
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.M), f"{path} has no {name}"


def known_options() -> set[str]:
    """Of every verb, and of every script of bench/ and tests/."""
    kinds: tuple[type, ...] = (RunConfig, PlanOptions, GenerateOptions, ReconstructOptions, ExportOptions)
    kinds += (VerifyOptions, StudyOptions, EvaluateOptions, CompareOptions)
    names = {name for kind in kinds for name, _ in option_names(kind)}
    for script in tracked("*.py"):
        names |= set(re.findall(r'add_argument\(\s*"--([\w-]+)"', script.read_text()))
    groups = {name.rpartition(".")[0] for name in names}
    return names | groups | ELSEWHERE


@every_page
def test_options_that_a_page_names_exist(page: Path) -> None:
    assert named(page, r"(?<![\w-])--([a-z]\w[\w.-]*)") - known_options() == set()


@every_page
def test_targets_of_make_that_a_page_names_exist(page: Path) -> None:
    """And `make help` says a line of each."""
    told = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    targets = set(re.findall(r"^  make ([a-z-]+)  +\S", told, re.M))
    assert targets == set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split())
    assert named(page, r"(?:^|(?<=[;&`]) *)make ([a-z-]+)") <= targets


def test_every_rule_names_its_test() -> None:
    """CONTRIBUTING.md fits on two screens, and every rule in it is held by something."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(text.splitlines()) <= 120
    rules = re.findall(r"^- .*$", text.partition("## Rules")[2], re.M)
    assert len(rules) > 20
    unheld = [rule for rule in rules if not re.search(r"`tests/[\w/]+\.py::test_\w+`$", rule)]
    assert [rule for rule in unheld if "Reviewers hold this one" not in rule] == []


def test_the_house_has_these_rooms_and_no_others() -> None:
    """Every folder of the package has a row in docs/house.md, and every row is a folder."""
    house = (ROOT / "docs" / "house.md").read_text()
    rows = re.findall(r"^\| `([\w/]+)/` \|", house, re.M)
    assert len(rows) == len(set(rows))
    files = [name_of(path) for path in tracked("reca_fast/*") if "reca_fast/kernels/" not in path.as_posix()]
    checkpoint = "reca_fast/proof/base"  # whose folders are those of a public checkpoint
    folders = {checkpoint if file.startswith(f"{checkpoint}/") else file.rpartition("/")[0] for file in files}
    assert {row for row in rows if row.startswith("reca_fast")} == folders
    assert {"kernels/ops", "kernels/ops/common", "bench", "tests"} <= set(rows)
    pages = [path.name for path in ROOT.glob("reca_fast/*.py") if not path.name.startswith("__")]
    assert [name for name in pages if f"`{name}`" not in house] == []


def told_by_make(*words: str) -> str:
    command = ["make", "--dry-run", "--old-file", ".venv/installed-dev", *words]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_make_forwards_a_file_and_names() -> None:
    """And `make test-fast` leaves out what is marked slow."""
    assert "pytest -k 'resume and not gpu' tests/train" in told_by_make(
        "test", "FILE=tests/train", "K=resume and not gpu"
    )
    assert "--numprocesses auto" in told_by_make("test")
    assert "-m 'not slow'" in told_by_make("test-fast") and "not slow" not in told_by_make("test")


def test_a_commit_and_make_lint_use_the_same_ruff() -> None:
    """The one of .venv, which constraints.txt pins: the hooks bring none of their own."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]
    entries = [hook["entry"] for hook in hooks[0]["hooks"]]
    assert [" ".join(entry.split()[:2]) for entry in entries] == [".venv/bin/ruff check", ".venv/bin/ruff format"]
    assert ".venv/bin/ruff check" in told_by_make("lint") and ".venv/bin/ruff format" in told_by_make("lint")


@every_page
def test_names_of_the_package_that_a_page_gives_are_there(page: Path) -> None:
    """`reca_fast.models.files.fill` and the like: a module, or something in one."""
    for name in sorted(named(page, r"\breca_fast(?:\.[A-Za-z_]\w*)+")):
        if not any(later in name for later in WRITTEN_LATER):
            pkgutil.resolve_name(name)


def test_the_page_on_models_names_every_method() -> None:
    from reca_fast.data.inputs import Batch, Inputs
    from reca_fast.models.protocol import Case, Model

    page = code(ROOT / "docs" / "adding-a-model.md")
    for protocol in (Model, Inputs, Batch, Case):
        wanted = {name for name in (*vars(protocol), *protocol.__annotations__) if not name.startswith("_")}
        assert {name for name in wanted if not re.search(rf"\b{name}\b", page)} == set(), protocol
