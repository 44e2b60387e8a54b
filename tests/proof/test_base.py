"""The base that ships is the one that docs/toy.md tells of."""

import hashlib
import re
from pathlib import Path

from reca_fast.proof.arms import BASES

ROOT = Path(__file__).parents[2]
BASE = BASES["openuni"]


def test_its_weights_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "toy.md").read_text()
    told = dict(re.findall(r"^\| `(\S+\.safetensors)` \| `([0-9a-f]{16})` \|$", page, re.M))
    weights = list(BASE.rglob("*.safetensors"))
    assert told == {
        path.relative_to(BASE).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in weights
    }


def test_it_is_no_larger_than_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in BASE.rglob("*") if path.is_file()) < 10e6
