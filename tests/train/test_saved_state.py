"""A saved state is read through types: whatever stands in it, a run goes on from it or says in one sentence why not."""

import functools
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from reca_fast.errors import UserError
from reca_fast.train.saved import find_saved, read_saved
from tests.train.short_run import running

pytestmark = pytest.mark.usefixtures("quick")


def test_a_run_of_another_version_is_refused_by_what_it_did_not_know(begun, configured, tmp_path):
    """A setting that the saved run did not have may change what it computed."""
    from reca_fast.checkpoints import CheckpointStore

    shutil.copytree(begun(False)[0], tmp_path / "run")
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    path = store.newest()
    assert path is not None
    state = json.loads((path / "run_state.json").read_text())
    del state["config"]["data"]["orientation"]
    store.save(2, {"model": {"x": torch.ones(1)}}, state | {"version": "0.0.9", "step": 2})
    with pytest.raises(UserError, match=r"knew no data.orientation, as runs of another version .*0\.0\.9"):
        find_saved(configured(tmp_path / "run", False), store, print)


def test_a_state_of_another_version_names_that_version(begun, tmp_path):
    """Version 0.1.0 did not count the packs that a lane has planned."""
    run = Path(shutil.copytree(begun(False)[0], tmp_path / "run"))
    (checkpoint,) = (run / "checkpoints").iterdir()
    file = checkpoint / "run_state.json"
    state = json.loads(file.read_text())
    del state["lanes"]["0"]["next"]["number"]
    file.write_text(json.dumps(state | {"version": "0.1.0"}))
    with pytest.raises(UserError, match=r"saved by reca-fast '0\.1\.0'.*lacks number\)\. Go on"):
        read_saved(checkpoint)


ODD: list[Any] = [None, True, "", "x" * 2000, -1, 1e999, 2**70, 0.5, [], [1], {}, {"a": 1}, [[]]]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every key and index in nested JSON, of long lists the first and the last."""
    inner = value.items() if isinstance(value, dict) else list(enumerate(value))[:: max(1, len(value) - 1)]
    for key, entry in inner:
        yield (*path, key)
        if isinstance(entry, dict | list):
            yield from places(entry, (*path, key))


def saved_by(run: Path) -> tuple[dict[str, Any], dict[str, dict]]:
    """State and tensors of a run's only checkpoint, as they are given to the store that saves them."""
    (folder,) = (run / "checkpoints").iterdir()
    state = json.loads((folder / "run_state.json").read_text())
    del state["files"]
    tensors: dict[str, dict] = {}
    with safe_open(folder / "shard-00000.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            section, _, rest = name.partition(".")
            tensors.setdefault(section, {})[rest] = file.get_tensor(name)
    return state, tensors


def test_odd_values_in_a_saved_state_are_one_sentence(begun, configured, tmp_path):
    """With checksums that fit, as somebody who means it could write them; `None` here means without the entry."""
    from reca_fast.checkpoints import CheckpointStore

    (state, tensors), chance = saved_by(begun(False)[0]), random.Random(0)
    ends: Counter[str] = Counter()
    for place in (where for where in places(state) if where[0] != "config" or chance.random() < 0.2):
        changed, value = json.loads(json.dumps(state)), chance.choice(ODD)
        owner = functools.reduce(getitem, place[:-1], changed)
        if value is None and isinstance(owner, dict):
            del owner[place[-1]]
        else:
            owner[place[-1]] = value
        out = tmp_path / "run"
        CheckpointStore(out / "checkpoints").save(1, tensors, changed)
        config = configured(out, False)
        config.steps, config.sample_every = 1, 0
        try:
            running.train(config)
            ends["went on"] += 1
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            ends["refused"] += 1
        shutil.rmtree(out)
    assert ends["refused"] > 2 * ends["went on"] > 0, ends  # a free setting, a key of an example


BROKEN_STATES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a number of numpy's generator is missing": (
        lambda s: s["generators"][0]["numpy"][1].pop(395),
        "step-0000001 is damaged",
    ),
    "a number of numpy's generator is a word": (lambda s: put_at(s["generators"][0]["numpy"][1], 518, "20"), "numpy"),
    "a number of numpy's generator has 33 bits": (
        lambda s: put_at(s["generators"][0]["numpy"][1], 251, 2**32),
        "numpy",
    ),
    "a number of Python's generator is missing": (
        lambda s: s["generators"][0]["python"][1].pop(480),
        "step-0000001 is damaged",
    ),
    "a position in the data is a word": (
        lambda s: s["lanes"]["0"]["next"]["streams"]["source"].update(position="8"),
        "position",
    ),
}


def put_at(numbers: list[Any], index: int, value: Any) -> None:
    numbers[index] = value


@pytest.mark.parametrize("fault", BROKEN_STATES)
def test_a_broken_state_is_refused(fault, begun, configured, tmp_path):
    """As somebody who edits run_state.json could write it: every checksum fits."""
    from reca_fast.checkpoints import CheckpointStore

    state, tensors = saved_by(begun(False)[0])
    damage, named = BROKEN_STATES[fault]
    damage(state)
    CheckpointStore(tmp_path / "run" / "checkpoints").save(1, tensors, state)
    with pytest.raises(UserError, match=named):
        running.train(configured(tmp_path / "run", False))


def test_a_state_without_its_checksum_is_damage(begun, configured, tmp_path):
    """run_state.json of another run, put into a checkpoint's folder: also where checksums are not verified."""
    shutil.copytree(begun(False)[0], tmp_path / "run")
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    state = json.loads((folder / "run_state.json").read_text())
    del state["files"]
    (folder / "run_state.json").write_text(json.dumps(state))
    for verify in (True, False):
        config = configured(tmp_path / "run", False)
        config.verify_checkpoint = verify
        with pytest.raises(UserError, match="step-0000001 is damaged"):
            running.train(config)
