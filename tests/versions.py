"""Are the version ranges true? Builds environments of each kind and runs the suite in every one.

lowest   each direct requirement at the lower bound that pyproject.toml states, the rest as new as these allow
pinned   constraints.txt
newest   what pip takes today

    python tests/versions.py                                      # all three, with the interpreter that runs this
    python tests/versions.py --only lowest --python python3.12 --python python3.13
    python tests/versions.py --only newest --with torch==2.11.0 --with transformers==5.17.0 --with 'numpy==2.5.*'
    python tests/versions.py --only pinned --sdist                # the suite of the source distribution, unpacked
    python tests/versions.py --only lowest -- -x tests/test_cli.py    # what follows -- goes to pytest

Environments are kept in build/versions/ (`--envs`), so that a second run starts at once; each takes 2 to 7 GB where pip
finds CUDA builds of torch only. Exit code 0 when every suite passed.
"""

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("lowest", "pinned", "newest")
EXTRAS = ("demo", "dev")
XFORMERS = "xformers==0.0.35"
"""As in the Makefile: without its requirements, in a folder of its own that conftest.py puts last on the path."""


def requirements() -> Iterator[Requirement]:
    """The direct requirements of the package and of the extras that the suite needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = list(project["dependencies"])
    wanted = list(EXTRAS)
    for extra in wanted:
        for text in project["optional-dependencies"][extra]:
            requirement = Requirement(text)
            if requirement.name == project["name"]:
                wanted += sorted(requirement.extras - set(wanted))
            else:
                texts.append(text)
    return map(Requirement, texts)


def lower_bounds() -> list[str]:
    """`name==version` for each requirement that states one, as a constraints file holds them."""
    bounds = {}
    for requirement in requirements():
        for part in requirement.specifier:
            if part.operator == ">=":
                bounds[requirement.name] = f"{requirement.name}=={part.version}"
    return sorted(bounds.values(), key=str.lower)


def build(kind: str, python: str, others: list[str], folder: Path) -> Path:
    """Makes the environment, or brings a kept one up to date; returns its interpreter."""
    inside = folder / "bin" / "python"
    if not inside.exists():
        run(python, "-m", "venv", folder)
    pip = [inside, "-m", "pip", "install", "--quiet"]
    constraints: list[str | Path] = []
    if kind == "pinned":
        constraints = ["--constraint", ROOT / "constraints.txt"]
    elif kind == "lowest":
        listed = folder / "lowest.txt"
        listed.write_text("".join(f"{line}\n" for line in lower_bounds()))
        constraints = ["--constraint", listed]
    upgrade = ["--upgrade", "--upgrade-strategy", "eager"] if kind == "newest" else []
    run(*pip, *upgrade, *constraints, "--editable", f"{ROOT}[{','.join(EXTRAS)}]", *others)
    if not (folder / "xformers").exists():
        run(*pip, "--no-deps", "--target", folder / "xformers", XFORMERS)
    run(inside, "-m", "pip", "check")
    return inside


def unpacked_sdist(python: Path, folder: Path) -> Path:
    """Builds the source distribution, unpacks it and lets the environment import it; returns where it lies."""
    code = "import sys, setuptools.build_meta as backend; backend.build_sdist(sys.argv[1])"
    run(python, "-c", code, folder, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    root = folder / archive.name.removesuffix(".tar.gz")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", root)
    return root


def suite(python: Path, root: Path, arguments: list[str]) -> tuple[bool, str]:
    """Runs pytest in `root`; returns whether it passed and its closing line."""
    command = [str(python), "-m", "pytest", "--numprocesses", "auto", "--maxprocesses", "4", *arguments]
    print("+", *command, flush=True)
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip(" =\n") if re.search(r"\d+ (passed|failed|error)", line) else last
    return process.returncode == 0, last


def run(*command: object, **options: Any) -> None:
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT, **options)


def tag(python: str) -> str:
    """`3.12` for the interpreter `python`."""
    said = subprocess.run([python, "--version"], check=True, capture_output=True, text=True).stdout
    return ".".join(re.findall(r"\d+", said)[:2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=KINDS, help="one kind; may be repeated")
    parser.add_argument("--python", action="append", help="an interpreter; may be repeated")
    parser.add_argument("--with", action="append", dest="others", default=[], metavar="REQUIREMENT")
    parser.add_argument("--envs", type=Path, default=ROOT / "build" / "versions")
    parser.add_argument("--sdist", action="store_true", help="test the unpacked source distribution, not the checkout")
    parser.add_argument("--no-tests", action="store_true", help="only build the environments")
    parser.add_argument("pytest", nargs="*", help="what follows -- goes to pytest")
    options = parser.parse_args()

    outcomes = {}
    for python in options.python or [sys.executable]:
        for kind in options.only or KINDS:
            others = [re.sub(r"[^\w.]+", "", other).strip(".") for other in options.others]
            name = "-".join([kind, tag(python), *others])
            try:
                inside = build(kind, python, options.others, options.envs / name)
                if options.no_tests:
                    outcomes[name] = True, "built"
                    continue
                with tempfile.TemporaryDirectory() as elsewhere:
                    root = unpacked_sdist(inside, Path(elsewhere)) if options.sdist else ROOT
                    outcomes[name] = suite(inside, root, options.pytest)
            except subprocess.CalledProcessError as error:  # the other environments still get their turn
                outcomes[name] = False, f"could not be built: {error}"
    for name, (passed, last) in outcomes.items():
        print(f"{name}: {'passed' if passed else 'FAILED'} ({last})")
    return 0 if all(passed for passed, _ in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
