"""Nothing that is read can run code: no file of the package or beside it unpickles, evaluates or loads objects."""

import ast
from pathlib import Path

import yaml

from reca_fast.cli import recipe_reader
from tests.places import ROOT

EXECUTES = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"),  # modules
    *("eval", "exec", "read_pickle", "allow_pickle", "unsafe_load", "full_load", "load_module"),
}

KNOWN = {
    "reca_fast/train/distributed.py": {"all_gather_object"},  # pickled from one of our processes to another, no file
    "reca_fast/cli/recipe_reader.py": {"yaml.load"},  # with a loader that makes plain values only
}

OBJECT_COLLECTIVES = {"all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"}


def reads_tensors_alone(call: ast.Call) -> bool:
    """torch.load(..., weights_only=True), written out: torch then refuses whatever is no tensor or plain container."""
    said = {word.arg: ast.unparse(word.value) for word in call.keywords}
    return ast.unparse(call.func) == "torch.load" and said.get("weights_only") == "True"


def calls_that_execute(path: Path) -> set[str]:
    """Names in a source file that unpickle, evaluate or load objects, wherever they are used."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    harmless = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call) and reads_tensors_alone(node)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.keyword):
            names = [node.arg or ""]
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            is_method = node.attr in ("eval", "exec")  # module.eval(): no evaluation
            names = [] if is_method else [node.attr]
            known = (("torch", "load"), ("yaml", "load"), ("torch.package", "PackageImporter"))
            if (owner, node.attr) in known and node not in harmless:
                found.add(f"{owner}.{node.attr}")
            if "checkpoint" in owner and owner.startswith(("torch", "dcp")):
                found.add(owner)
        found |= (EXECUTES | OBJECT_COLLECTIVES) & set(names)
    return found


def test_nothing_is_unpickled_or_evaluated():
    """In the package, and in what is run beside it."""
    paths = [path for room in ("reca_fast", "kernels", "bench") for path in ROOT.glob(f"{room}/**/*.py")]
    assert len(paths) > 100
    found = {str(path.relative_to(ROOT)): names for path in paths if (names := calls_that_execute(path))}
    assert found == KNOWN
    assert issubclass(recipe_reader._Loader, yaml.SafeLoader)


def test_the_search_finds_what_it_looks_for(tmp_path):
    (tmp_path / "bad.py").write_text(
        "import pickle, numpy\nfrom torch.distributed.checkpoint import x\ntorch.load('x')\nyaml.load(x)\n"
        "torch.load('x', weights_only=a)\n"
        "numpy.load(x, allow_pickle=True)\neval('1')\nmodel.eval()\n"
    )
    assert calls_that_execute(tmp_path / "bad.py") == {"pickle", "torch.load", "yaml.load", "allow_pickle", "eval"}
    (tmp_path / "good.py").write_text("import torch\ntorch.load('x', mmap=True, weights_only=True)\nmodel.eval()\n")
    assert calls_that_execute(tmp_path / "good.py") == set()
