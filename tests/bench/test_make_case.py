"""bench/make_case.py refuses cases that cannot be, before it writes anything."""

import subprocess
import sys

import pytest

from tests.places import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def process(*command: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("x --sample text=4,vit=700x14,vae=16x16", "50x1 patch grid does not fit"),
        ("x --sample text=4,vit=14x14,vae=16x16,dropped --joint", "a sample whose text is kept"),
    ],
)
def test_impossible_cases_are_refused_before_anything_is_written(options, message, tmp_path) -> None:
    done = process(str(ROOT / "bench" / "make_case.py"), *options.split(), cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
