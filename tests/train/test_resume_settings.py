"""Every setting does on resume what is declared beside it: fixed, free, rounding or neutral. All are changed, one by
one, in a run that is really resumed.
"""

import math
import shutil
from dataclasses import is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from safetensors.torch import load_file, save_file

from reca_fast.checkpoints import CheckpointStore
from reca_fast.config import RunConfig, settings
from reca_fast.errors import UserError
from reca_fast.train.saved import find_saved
from tests.train.short_run import course, running

pytestmark = pytest.mark.usefixtures("quick")

JOINT = {"loss.t2i", "loss.i2t", "data.tasks.t2i", "data.tasks.i2t"}
"""Settings that mean something only where all tasks are trained."""

ELSEWHERE = {
    "data.cache": "test_a_run_goes_on_with_a_cache_and_without_one in test_train_from_cache.py: it takes a cache",
    "data.instructions": "test_other_words_or_pictures_are_refused_on_resume in test_train_on_instructions.py",
    "data.instruction_images": "the same test: what counts is which pictures the conversations have",
    "resume": "test_what_cannot_be_resumed_is_refused in test_resume.py: false refuses whatever else was saved",
    **dict.fromkeys(("sampling.guidance_schedule", "sampling.temperature"), "nowhere: BAGEL refuses them"),
    "model.auxiliary.vae": "test_the_vae_is_part_of_the_base in models/auxiliary/test_model.py: BAGEL has none",
    "memory.trained": "test_the_dtype_of_trained_weights_is_kept below: bf16 takes a run in bf16",
    "model.weights": "test_the_file_of_weights_is_part_of_the_base below: its content counts as the base's",
    "parallel.replicate": "test_the_number_of_replicas_may_change below: it takes two processes",
}

OTHERS: dict[str, Any] = {
    "steps": 4,
    "device": "auto",
    "model.attention": "sdpa",
    "model.name": "BAGEL-7B-MoT",
    "model.precision": "bf16",
    "data.split": "test",
    "data.image_column": "picture",
    "data.caption_column": "text",
    "data.caption_name": "short",
    "data.condition_resize.min_size": 14,
    "data.target_resize.min_size": 8,
    "data.text_dropout": 0.5,
    "lora.targets": ("q_proj",),
    "model.freeze": ("vae2llm",),
    "data.own_templates": ("Describe it.",),
    "optim.kind": "adafactor",
    "optim.betas": (0.5, 0.5),
    "optim.max_grad_norm": 0.01,
    "optim.schedule": "constant",
    "optim.ema_decay": 0.5,
    "model.condition": "understanding",
    "sampling.steps": 4,
    "sampling.timestep_shift": 1.0,
    "sampling.guidance": 2.0,
    "sampling.guidance_renorm": "channel",
    "sampling.guidance_renorm_min": 0.5,
    "sampling.image_guidance": 1.5,
    "sampling.guidance_interval": (0.4, 1.0),
}
"""Values for those that cannot just be doubled or turned round."""

BLOCK_BY_BLOCK = {"memory.order": "layer", "memory.recompute": "blocks"}
TOGETHER: dict[str, dict[str, Any]] = {
    "memory.gradients": BLOCK_BY_BLOCK,
    "memory.frozen_on": BLOCK_BY_BLOCK,
    "memory.swap": BLOCK_BY_BLOCK,
    "memory.budget_gib": {"memory.recompute": "budget"},
}
"""Settings that may be changed only together with others."""


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
        for other, value in TOGETHER.get(name, {}).items():
            put(config, other, value)

    if setting.resume == "fixed":
        with pytest.raises(UserError, match=rf"{name}\b.* name another --out"):
            running.train(config)
        assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-0000001"]
        return
    running.train(config)
    resumed = course(out)
    if setting.resume == "free":
        fresh = put(configured(tmp_path / "fresh", name in JOINT), name, attrgetter(name)(config))
        running.train(fresh)
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


def test_the_dtype_of_trained_weights_is_kept(begun, configured, tmp_path):
    shutil.copytree(begun(False)[0], tmp_path / "run")
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    config = put(configured(tmp_path / "run", False), "memory.trained", "bf16")
    with pytest.raises(UserError, match=r"had memory\.trained='fp32', now it is 'bf16'.* name another --out"):
        find_saved(config, store, print)


@pytest.mark.parametrize("name", ["model.path", "data.source"])
def test_a_folder_that_has_moved_is_the_same(name, begun, configured, base, pictures, tmp_path):
    before, whole = begun(False)
    shutil.copytree(before, tmp_path / "run")
    shutil.copytree(base if name == "model.path" else pictures, tmp_path / "moved")
    running.train(put(configured(tmp_path / "run", False), name, str(tmp_path / "moved")))
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
        running.train(put(configured(tmp_path / "run", False), "model.path", str(tmp_path / "moved")))


def test_the_file_of_weights_is_part_of_the_base(begun, configured, base, tmp_path):
    """Named or found, it is the same file; another one is another base."""
    before, whole = begun(False)
    shutil.copytree(before, tmp_path / "same")
    running.train(put(configured(tmp_path / "same", False), "model.weights", "ema.safetensors"))
    assert course(tmp_path / "same") == whole
    shutil.copytree(before, tmp_path / "run")
    other = Path(other_contents("model.path", base, base, tmp_path / "new")) / "ema.safetensors"
    with pytest.raises(UserError, match=r"model\.path=.* it differs in ema\.safetensors\. Set it back"):
        running.train(put(configured(tmp_path / "run", False), "model.weights", str(other)))


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
        running.train(put(configured(tmp_path / "run", False), "data.source", str(tmp_path / "moved")))


def test_the_number_of_replicas_may_change(train, tmp_path):
    """Two shards become two replicas: the same numbers but for the order of their sums."""
    whole = train(tmp_path / "whole", "--steps", "3", processes=2)
    train(tmp_path / "run", "--steps", "2", processes=2)
    resumed = train(tmp_path / "run", "--steps", "3", "--parallel.replicate", "2", processes=2)
    for line, other in zip(resumed, whole, strict=True):
        assert math.isclose(line["loss"], other["loss"], rel_tol=1e-5), (line, other)


def test_every_setting_is_declared():
    assert len(NAMES) == len(set(NAMES)) > 50
    assert ELSEWHERE.keys() | JOINT | OTHERS.keys() <= set(NAMES)
    assert not any(is_dataclass(attrgetter(name)(RunConfig())) for name in NAMES)
