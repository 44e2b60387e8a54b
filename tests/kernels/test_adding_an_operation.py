"""docs/adding-an-operation.md is right: what it says, done in a copy of the checkout, gives an operation that works."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import ROOT
from tests.source_tree import tracked

PAGE = ROOT / "docs" / "adding-an-operation.md"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The checkout with the files of the page written and its one line added."""
    for path in tracked("*.py", "docs/kernels.md", "pyproject.toml"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    (tmp_path / "reca_fast" / "kernels").symlink_to("../kernels/ops")
    for body in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        name, content = body.split("\n", 1)
        file = tmp_path / name.removeprefix("# ")
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
    line = re.findall(r"`(from \.\w+ import \w+ as \w+)`", PAGE.read_text())[0]
    entries = tmp_path / "kernels" / "ops" / "__init__.py"
    entries.write_text(entries.read_text().replace("from .swiglu", f"{line}\nfrom .swiglu"))
    with (tmp_path / "docs" / "kernels.md").open("a") as page:
        page.write("\n## `softcap`\n")
    return tmp_path


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_page_adds_an_operation(checkout: Path) -> None:
    """Its own tests pass, and so do those of the registry and of wrong arguments, which find it by themselves."""
    pytest.importorskip("triton", reason="Triton is not installed")
    tests = ["test_softcap.py", "test_registry.py", "test_arguments.py"]
    files = [str(checkout / "tests" / "kernels" / name) for name in tests]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "softcap or registry", *files]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
