"""Every setting does on resume what is declared beside it: fixed, free, rounding or neutral. All are changed, one by
one, in a run that is really resumed.
"""

import functools
import importlib
import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from operator import attrgetter, getitem
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reca_fast.config import DataConfig, ModelConfig, OptimConfig, ResizeConfig, RunConfig, SamplingConfig, settings
from reca_fast.errors import UserError
from reca_fast.train.saved import find_saved

running = importlib.import_module("reca_fast.train.run")
JOINT = {"loss.t2i", "loss.i2t", "data.tasks.t2i", "data.tasks.i2t"}
"""Settings that mean something only where all tasks are trained."""
ELSEWHERE = {
    "resume": "test_what_cannot_be_resumed_is_refused in test_resume.py: false refuses whatever else was saved",
    "model.weights": "test_the_file_of_weights_is_part_of_the_base below: its content counts as the base's",
    "parallel.replicate": "test_the_number_of_replicas_may_change below: it takes two processes",
}
OTHERS: dict[str, Any] = {
    "steps": 4,
    "device": "auto",
    "model.attention": "sdpa",
    "model.precision": "bf16",
    "data.split": "test",
    "data.image_column": "picture",
    "data.caption_column": "text",
    "data.vit_resize.min_size": 14,
    "data.vae_resize.min_size": 8,
    "data.text_dropout": 0.5,
    "optim.betas": (0.5, 0.5),
    "optim.max_grad_norm": 0.01,
    "optim.schedule": "constant",
    "optim.ema_decay": 0.5,
    "sampling.guidance": 2.0,
    "sampling.image_guidance": 1.5,
    "sampling.guidance_interval": (0.4, 1.0),
}
"""Values for those that cannot just be doubled or turned round."""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    from reca_fast.models.bagel.tiny import write_tiny_checkpoint

    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    write_tiny_checkpoint(folder, hidden_size=32, intermediate_size=32, layers=1, vit_hidden_size=48, text_vocab=300)
    return folder


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """No pictures of curves; a compiler that needs no C++; torch as it was before."""
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reca_fast.train.telemetry.draw_curve", lambda *args: None)
        patch.setattr(running, "apply_levers", functools.partial(running.apply_levers, compiler="eager"))
        torch.set_num_threads(1)
        yield
    torch.use_deterministic_algorithms(before)
    torch.set_num_threads(threads)


Configured = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def configured(base, pictures) -> Configured:
    """configured(out, joint): three short steps.

    After the first one, whose learning rate is 0, the weights are the base's; moments are forgotten at once (betas of
    0). So a fresh run and one that is resumed after it differ in nothing but the settings.
    """

    def make(out: Path, joint: bool) -> RunConfig:
        config = RunConfig(
            out=str(out),
            steps=3,
            device="cpu",
            model=ModelConfig(path=str(base), precision="fp32", attention="eager", freeze_und=not joint),
            data=DataConfig(
                source=str(pictures),
                vit_resize=ResizeConfig(28, 28, 14),
                vae_resize=ResizeConfig(16, 16, 8),
                tokens_per_pack=100,
            ),
            optim=OptimConfig(lr=1e-3, betas=(0.0, 0.0), eps=1e-2, warmup_steps=1, schedule="cosine"),
            sampling=SamplingConfig(steps=3, guidance=1.5),
            save_every=1,
            keep=10,
            sample_every=2,
            sample_count=1,
        )
        if joint:
            for task in ("t2i", "i2t"):
                setattr(config.data.tasks, task, 1.0)
                setattr(config.loss, task, 1.0)
        return config

    return make


Course = dict[int, tuple]


def course(out: Path) -> Course:
    """Step -> the numbers that it computed, after the first step."""
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: (row["loss"], row["grad_norm"], row["lr"], row["images"]) for row in rows if row["step"] > 1}


@pytest.fixture(scope="module")
def begun(configured, tmp_path_factory) -> Callable[[bool], tuple[Path, Course]]:
    """begun(joint): (run folder left after the first step, course of the whole run)."""

    @functools.cache
    def make(joint: bool) -> tuple[Path, Course]:
        out = tmp_path_factory.mktemp("begun") / "run"
        running.run(configured(out, joint))
        whole = course(out)
        for step in (2, 3):
            shutil.rmtree(out / "checkpoints" / f"step-000000{step}")
        return out, whole

    return make


def kind_of(config: Any, name: str) -> Any:
    *path, leaf = name.split(".")
    owner = attrgetter(".".join(path))(config) if path else config
    kind = get_type_hints(type(owner), include_extras=True)[leaf]
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def another(config: RunConfig, name: str) -> Any:
    """A value that the setting does not have."""
    value, kind = attrgetter(name)(config), kind_of(config, name)
    if name in OTHERS:
        return OTHERS[name]
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice not in (value, "auto", "triton"))
    if isinstance(value, bool):
        return not value
    assert isinstance(value, int | float), f"{name}: give OTHERS a value that it may take"
    return value * 2 or type(value)(1)


def put(config: RunConfig, name: str, value: Any) -> RunConfig:
    *path, leaf = name.split(".")
    setattr(attrgetter(".".join(path))(config) if path else config, leaf, value)
    return config


def other_contents(name: str, base: Path, pictures: Path, folder: Path) -> str:
    """What model.path or data.source leads to, under the same names, with one number or pixel changed."""
    if name == "data.source":
        shutil.copytree(pictures, folder)
        shutil.copyfile(folder / "00.png", folder / "01.png")
    else:
        shutil.copytree(base, folder)
        weights = load_file(folder / "ema.safetensors")
        weights["llm2vae.bias"][0] += 1
        save_file(weights, folder / "ema.safetensors")
    return str(folder)


NAMES = [setting.name for setting in settings(RunConfig())]


@pytest.mark.parametrize("name", sorted(set(NAMES) - ELSEWHERE.keys()))
def test_a_changed_setting_does_what_is_declared(name, begun, configured, base, pictures, tmp_path):
    (setting,) = (entry for entry in settings(RunConfig()) if entry.name == name)
    before, whole = begun(name in JOINT)
    out = tmp_path / "run"
    shutil.copytree(before, out)
    config = configured(out, name in JOINT)
    if name != "out":  # which is another one as it is
        changed = other_contents(name, base, pictures, tmp_path / "new") if setting.by == "content" else None
        put(config, name, changed or another(config, name))

    if setting.resume == "fixed":
        with pytest.raises(UserError, match=rf"{name}\b.* name another --out"):
            running.run(config)
        assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-0000001"]
        return
    running.run(config)
    resumed = course(out)
    if setting.resume == "free":
        fresh = put(configured(tmp_path / "fresh", name in JOINT), name, attrgetter(name)(config))
        running.run(fresh)
        assert resumed == course(tmp_path / "fresh")
        assert resumed != whole, "it has no effect"
    elif setting.resume == "neutral":
        assert resumed.keys() <= whole.keys() and resumed
        assert resumed == {step: whole[step] for step in resumed}
    else:
        assert resumed.keys() == whole.keys()
        for step, numbers in resumed.items():
            for number, expected in zip(numbers, whole[step], strict=True):
                assert math.isclose(number, expected, rel_tol=1e-4), (step, numbers, whole[step])


@pytest.mark.parametrize("name", ["model.path", "data.source"])
def test_a_folder_that_has_moved_is_the_same(name, begun, configured, base, pictures, tmp_path):
    before, whole = begun(False)
    shutil.copytree(before, tmp_path / "run")
    shutil.copytree(base if name == "model.path" else pictures, tmp_path / "moved")
    running.run(put(configured(tmp_path / "run", False), name, str(tmp_path / "moved")))
    assert course(tmp_path / "run") == whole


@pytest.mark.parametrize("file", ["ae.safetensors", "llm_config.json", "tokenizer_config.json"])
def test_every_file_that_makes_the_base_counts(file, begun, configured, base, tmp_path):
    """Others there, a README say, do not."""
    shutil.copytree(begun(False)[0], tmp_path / "run")
    shutil.copytree(base, tmp_path / "moved")
    (tmp_path / "moved" / "README.md").write_text("moved")
    path = tmp_path / "moved" / file
    if path.suffix == ".json":
        path.write_text(path.read_text() + " ")
    else:
        weights = load_file(path)
        save_file({key: tensor + 1e-3 for key, tensor in weights.items()}, path)
    with pytest.raises(
        UserError, match=rf"model.path=.* is not what the saved run had there, it differs in {file}\. Set"
    ):
        running.run(put(configured(tmp_path / "run", False), "model.path", str(tmp_path / "moved")))


def test_the_file_of_weights_is_part_of_the_base(begun, configured, base, tmp_path):
    """Named or found, it is the same file; another one is another base."""
    before, whole = begun(False)
    shutil.copytree(before, tmp_path / "same")
    running.run(put(configured(tmp_path / "same", False), "model.weights", "ema.safetensors"))
    assert course(tmp_path / "same") == whole
    shutil.copytree(before, tmp_path / "run")
    other = Path(other_contents("model.path", base, base, tmp_path / "new")) / "ema.safetensors"
    with pytest.raises(UserError, match=r"model\.path=.* it differs in ema\.safetensors\. Set it back"):
        running.run(put(configured(tmp_path / "run", False), "model.weights", str(other)))


def change_names(folder: Path) -> None:
    (folder / "00.png").rename(folder / "99.png")


def change_sizes(folder: Path) -> None:
    data = (folder / "05.png").read_bytes()
    (folder / "05.png").write_bytes(data + b"\0")


def change_pictures(folder: Path) -> None:
    data = (folder / "00.png").read_bytes()
    (folder / "00.png").write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / "00.png").unlink(), "number of records, names, sizes, pictures"),
        (change_names, "names, sizes, pictures"),
        (change_sizes, "sizes, pictures"),
        (change_pictures, "pictures"),
    ],
    ids=["number", "names", "sizes", "pictures"],
)
def test_other_data_is_told_by_what_differs(change, told, begun, configured, pictures, tmp_path):
    shutil.copytree(begun(False)[0], tmp_path / "run")
    shutil.copytree(pictures, tmp_path / "moved")
    change(tmp_path / "moved")
    with pytest.raises(
        UserError, match=rf"data.source=.* is not what the saved run had there, it differs in {told}\. Set"
    ):
        running.run(put(configured(tmp_path / "run", False), "data.source", str(tmp_path / "moved")))


def test_the_number_of_replicas_may_change(train, tmp_path):
    """Two shards become two replicas: the same numbers but for the order of their sums."""
    whole = train(tmp_path / "whole", "--steps", "3", processes=2)
    train(tmp_path / "run", "--steps", "2", processes=2)
    resumed = train(tmp_path / "run", "--steps", "3", "--parallel.replicate", "2", processes=2)
    for line, other in zip(resumed, whole, strict=True):
        assert math.isclose(line["loss"], other["loss"], rel_tol=1e-5), (line, other)


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


ODD = [None, True, "", "x" * 2000, -1, 1e999, 2**70, 0.5, [], [1], {}, {"a": 1}, [[]]]


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
            running.run(config)
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
    "a position in the data is a word": (lambda s: s["lanes"]["0"]["next"].update(position="8"), "position"),
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
        running.run(configured(tmp_path / "run", False))


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
            running.run(config)


def test_every_setting_is_declared():
    assert len(NAMES) == len(set(NAMES)) > 50
    assert ELSEWHERE.keys() | JOINT | OTHERS.keys() <= set(NAMES)
    assert not any(is_dataclass(attrgetter(name)(RunConfig())) for name in NAMES)
