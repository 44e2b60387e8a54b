"""The package as a tree of files, for tests that read code instead of running it."""

import ast
import subprocess
from pathlib import Path

from tests.places import ROOT

SOURCES = sorted([*ROOT.glob("reca_fast/**/*.py"), *ROOT.glob("kernels/ops/**/*.py")])
"""Every file of the package; `kernels/ops/` is imported as `reca_fast.kernels`."""
SOURCES = [path for path in SOURCES if "reca_fast/kernels/" not in path.as_posix()]  # a link, see .gitignore


def tracked(*patterns: str) -> list[Path]:
    """Files of the checkout (of an unpacked source distribution: all) that fit one of the glob patterns."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *patterns]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        return sorted(path for name in listed.split("\0") if name and (path := ROOT / name).exists())
    kept = {path for pattern in patterns for path in ROOT.rglob(pattern.rpartition("/")[2]) if path.is_file()}
    return sorted(path for path in kept if not path.relative_to(ROOT).parts[0].startswith((".", "build", "runs")))


def module_name(path: Path) -> str:
    inside = path.relative_to(ROOT).with_suffix("").parts
    parts = ("reca_fast", "kernels", *inside[2:]) if inside[0] == "kernels" else inside
    return ".".join(parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Full names of everything of reca_fast that a file imports, wherever in it."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("reca_fast.")}
