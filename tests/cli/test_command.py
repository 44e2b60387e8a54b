"""The command: fast help, help on every option, one entry point, the allocator's settings before torch is imported."""

import dataclasses
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import reca_fast as package
from reca_fast.cli import VERBS, main
from reca_fast.config import RunConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def process(*command: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, **options)


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


def test_version_is_that_of_the_package(reca_fast) -> None:
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
    assert len(settings) > 50 and "data.target_resize.max_size" in settings
    for name, doc in settings.items():
        assert f"--{name}" in said, name
        assert re.sub(r"\s+", "", doc.replace("%%", "%")) in said, name


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    said = capsys.readouterr()
    assert end.value.code == 0 and said.out.startswith(f"usage: reca-fast {verb}") and not said.err


# The allocator of a GPU


@pytest.mark.slow
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
