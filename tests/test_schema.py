"""Typed reading of what comes from outside: any value of any wrong kind ends in one sentence that names its place."""

import json
import os
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from reca_fast.errors import UserError
from reca_fast.schema import Range, check_ranges, from_dict, parse_json, read_json


@dataclass
class Inner:
    share: Annotated[float, Range(at_least=0, below=1)] = 0.5


@dataclass
class Outer:
    count: Annotated[int, Range(1, 10)]
    kind: Literal["a", "b"] = "a"
    on: bool = True
    name: str | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    places: list[tuple[int, int]] = field(default_factory=list)
    more: dict[str, Annotated[int, Range(at_least=0)]] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    free: Any = None


WHOLE = {
    "count": 3,
    "kind": "b",
    "on": False,
    "name": "x",
    "pair": [0, 0.5],
    "places": [[1, 2], [3, 4]],
    "more": {"k": 0},
    "inner": {"share": 0},
    "free": [None],
    "unknown": 1,
}


def test_fill_gives_every_kind_of_value() -> None:
    want = Outer(3, "b", False, "x", (0.0, 0.5), [(1, 2), (3, 4)], {"k": 0}, Inner(0.0), [None])
    assert from_dict(Outer, WHOLE, "f.json") == want
    assert from_dict(Outer, {"count": 1}, "f.json") == Outer(1)
    with pytest.raises(UserError, match=r"f.json has the unknown key 'unknown'."):
        from_dict(Outer, WHOLE, "f.json", strict=True)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"count": True}, "f.json: count is True, not a whole number."),
        ({"count": 3.0}, "f.json: count is 3.0, not a whole number."),
        ({"count": None}, "f.json: count is None, not a whole number."),
        ({"count": 0}, "f.json: count is 0; it must be at least 1 and at most 10."),
        (
            {"count": 10**5000},
            "f.json: count is a number of more than 60 digits; it must be at least 1 and at most 10.",
        ),
        ({"kind": "c"}, "f.json: kind is 'c', not one of a, b."),
        ({"kind": ["a"]}, "f.json: kind is ['a'], not one of a, b."),
        ({"on": 1}, "f.json: on is 1, not true or false."),
        ({"name": 1}, "f.json: name is 1, not text or null."),
        ({"pair": [1]}, "f.json: pair is [1], not a list of 2 values, each a number."),
        ({"pair": [1, float("inf")]}, "f.json: pair is inf; it must be finite."),
        ({"pair": [1, 10**400]}, "f.json: pair is a number of more than 60 digits; it must be finite."),
        ({"places": [[1, "2"]]}, "f.json: places is '2', not a whole number."),
        ({"places": {}}, "f.json: places is {}, not a list of values, each a list of 2 values, each a whole number."),
        ({"more": {"k": -1}}, "f.json: more.k is -1; it must be at least 0."),
        ({"inner": {"share": 1}}, "inner of f.json: share is 1.0; it must be at least 0 and below 1."),
        ({"inner": {"share": float("nan")}}, "inner of f.json: share is nan; it must be finite."),
        ({"inner": []}, "inner of f.json holds no settings (name: value)."),
    ],
)
def test_fill_names_the_value_and_what_it_must_be(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        from_dict(Outer, WHOLE | change, "f.json")
    assert str(raised.value) == sentence


def test_fill_names_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"^f.json lacks count"):
        from_dict(Outer, {}, "f.json")


@pytest.mark.parametrize(
    "text, sentence",
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe{", "cannot be read as JSON"),
        (b"1" * 5000, "cannot be read as JSON"),
        (b'{"a": 1, "a": 2}', "holds the name 'a' twice"),
        (rb'["\ud83d"]', "holds half of a character"),
        (b"[" * 60 + b"]" * 60, "nests deeper than 50 levels"),
        (b"[" * 100_000 + b"]" * 100_000, "nests deeper than 50 levels"),
    ],
)
def test_json_of_any_kind(text: bytes, sentence: str, tmp_path) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match=sentence):
        read_json(path)
    with pytest.raises(UserError, match=sentence):
        parse_json(text, "f.json")


def test_json_files_that_are_none(tmp_path) -> None:
    (tmp_path / "big.json").write_text(json.dumps(["x" * 100]))
    with pytest.raises(UserError, match="larger than 50 bytes"):
        read_json(tmp_path / "big.json", max_bytes=50)
    os.mkfifo(tmp_path / "pipe.json")
    for name, said in {"pipe.json": "is no file", "no.json": "is missing", ".": "is no file"}.items():
        with pytest.raises(UserError, match=said):
            read_json(tmp_path / name)


def test_ranges_of_a_configuration_that_is_there() -> None:
    check_ranges(Outer(3))
    with pytest.raises(UserError, match=r"^inner.share=1.5: it must be at least 0 and below 1.$"):
        check_ranges(Outer(3, inner=Inner(1.5)))
    with pytest.raises(UserError, match=r"^pair=\(0.0, nan\): it must be finite.$"):
        check_ranges(Outer(3, pair=(0.0, float("nan"))))
