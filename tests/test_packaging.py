"""What the distributions hold, and that the versions we name can be installed together."""

import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests.places import ROOT

pytestmark = pytest.mark.slow

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
VERSIONS = runpy.run_path(str(ROOT / "tests" / "versions.py"))
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)

TRITON_OF_TORCH = {
    "2.10": "==3.6.0",
    "2.11": "==3.6.0",
    "2.12": "~=3.7.0",
    "2.13": "==3.7.1",
    "2.14": "~=3.8.0",
    "2.15": "~=3.9.0",
}
"""What torch's CUDA builds demand. CPU builds demand no Triton, so that a wrong pair would only show on a GPU."""


def triton_of(torch: str) -> SpecifierSet:
    return SpecifierSet(TRITON_OF_TORCH[".".join(map(str, Version(torch).release[:2]))])


# Versions


def test_the_pins_are_a_pair() -> None:
    assert PINS["triton"] in triton_of(PINS["torch"])


def test_the_lower_bounds_are_a_pair() -> None:
    lowest = dict(line.split("==") for line in VERSIONS["lower_bounds"]())
    assert lowest["triton"] in triton_of(lowest["torch"])


def test_the_table_of_pairs_is_what_this_torch_says() -> None:
    said = [Requirement(text) for text in importlib.metadata.requires("torch") or []]
    demanded = [requirement.specifier for requirement in said if requirement.name == "triton"]
    if not demanded:
        pytest.skip("this torch is a CPU build, whose metadata names no Triton")
    assert all(part.version in triton_of(importlib.metadata.version("torch")) for part in demanded[0])


def test_every_direct_requirement_is_pinned_inside_its_range() -> None:
    for requirement in VERSIONS["requirements"]():
        if requirement.name == "setuptools":  # pip brings its own when it builds
            continue
        assert requirement.name in PINS, f"constraints.txt does not pin {requirement.name}"
        assert PINS[requirement.name] in requirement.specifier, requirement


def test_every_requirement_of_the_package_states_a_lower_bound() -> None:
    """Without one pip may keep a release that was never tried."""
    for text in [*PROJECT["dependencies"], *chain(*EXTRAS.values())]:
        requirement = Requirement(text)
        stated = any(part.operator == ">=" for part in requirement.specifier)
        assert stated or requirement.name == PROJECT["name"] or requirement.name.startswith("types-"), text


def test_the_extra_for_gpus_compiles_nothing() -> None:
    """flash-attn has no wheel: on a rented GPU its hour of compilation must be asked for by name."""
    having = {extra for extra, texts in EXTRAS.items() if any(Requirement(text).name == "flash-attn" for text in texts)}
    assert having == {"flash-attn"}


def test_every_extra_that_we_name_exists() -> None:
    """In messages and in the README: reca-fast[gpu], .[gpu], '.[demo,dev]'."""
    folders = (
        "reca_fast/**/*.py",
        "kernels/**/*.py",
        "bench/**/*.py",
        "tests/**/*.py",
        "docs/**/*.md",
        "*.md",
        "Makefile",
    )
    named: dict[str, Path] = {}
    for path in [path for pattern in folders for path in ROOT.glob(pattern)]:
        for inside in re.findall(r"(?:reca-fast|'\.)\[([a-z][a-z,-]*)\]", path.read_text()):
            named |= dict.fromkeys(inside.split(","), path)
    assert {"gpu", "demo", "flash-attn"} <= named.keys()
    assert not (strangers := {name: path for name, path in named.items() if name not in EXTRAS}), strangers


# The distributions


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built from a copy of the checkout and unpacked."""
    source, built = tmp_path_factory.mktemp("source") / "copy", tmp_path_factory.mktemp("sdist")
    leave = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=leave, ignore_dangling_symlinks=True)
    code = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, built], cwd=source, check=True, capture_output=True)
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(built, filter="data")
    return built / archive.name.removesuffix(".tar.gz")


def test_sdist_holds_everything_that_its_tests_read(sdist: Path) -> None:
    """That is, the checkout: tests read the benchmarks, the recipes, constraints.txt, the README, ..."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout to compare with")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    wanted = {name for name in listed.splitlines() if not name.startswith(".") and (ROOT / name).exists()}
    held = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert wanted - held == set()
    assert not [name for name in held if "__pycache__" in name]


@pytest.fixture(scope="module")
def installed(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds from the source distribution, installed into a folder of its own, offline."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--no-index", "--target", target, sdist], check=True)
    return target


def test_wheel_holds_everything(installed: Path) -> None:
    """Every module and every data file, the kernels under reca_fast and nowhere else."""
    found = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.suffix != ".pyc"}
    wanted = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("reca_fast/**/*") if path.is_file()}
    kernels = ROOT / "kernels" / "ops"
    wanted |= {f"reca_fast/kernels/{path.relative_to(kernels).as_posix()}" for path in kernels.rglob("*.py")}
    assert {"reca_fast/recipes/bagel.yaml", "reca_fast/models/bagel/tiny/vae.safetensors"} <= wanted
    assert {name for name in wanted if "__pycache__" not in name} - found == set()
    assert not [name for name in found if name.split("/")[0] in ("kernels", "bench", "tests", "docs")]


def test_installed_package_imports(installed: Path, tmp_path: Path) -> None:
    code = "import reca_fast, reca_fast.kernels as ours; print(reca_fast.__file__, ours.__file__)"
    code += "\ntry:\n  import kernels\n  print(kernels.__path__)\nexcept ModuleNotFoundError:\n  print('none')"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    package, other = done.stdout.splitlines()
    assert package == f"{installed}/reca_fast/__init__.py {installed}/reca_fast/kernels/__init__.py"
    assert str(ROOT) not in other and str(installed) not in other


def test_installed_package_runs(installed: Path, tmp_path: Path) -> None:
    """Recipes and the shipped weights are found where pip put them."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    code = "from reca_fast.cli import main; raise SystemExit(main(['train', '--config', 'bagel', '--print_config']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "recompute: blocks" in done.stdout, done
