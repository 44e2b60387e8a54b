"""Training from a cache computes what training from the pictures does, bit for bit, and loads neither them nor an
encoder.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reca_fast.cli.train import export_to
from reca_fast.config import RunConfig
from reca_fast.config.data import ResizeConfig, TaskWeights
from reca_fast.data.cache.source import CacheSource
from reca_fast.errors import UserError
from reca_fast.precompute import make_cache
from reca_fast.train import train_stages
from tests.train.short_run import course, running

pytestmark = [pytest.mark.usefixtures("quick"), pytest.mark.slow]


@pytest.fixture(scope="module")
def mixed(configured, pictures, tmp_path_factory) -> Callable[..., RunConfig]:
    """mixed(out): three steps of two packs, of targets and conditions of several sizes, for two tasks; one of the
    pictures has no header, three have no end.
    """
    source = tmp_path_factory.mktemp("mixed") / "pictures"
    shutil.copytree(pictures, source)
    for name in ("04.png", "11.png", "20.png"):
        (source / name).write_bytes((source / name).read_bytes()[:-300])
    (source / "09.png").write_bytes(b"no picture")

    def make(out: Path, precision: str = "fp32", cache: Path | None = None, **more: object) -> RunConfig:
        config = configured(out, joint=False)
        config.model.precision = precision
        config.loss.t2i = 0.5
        config.data = replace(
            config.data,
            source=str(source),
            cache="" if cache is None else str(cache),
            condition_resize=ResizeConfig(56, 28, 14),
            target_resize=ResizeConfig(32, 16, 8),
            tasks=TaskWeights(reca=0.7, t2i=0.3),
            blur_sigma=1.0,
            tokens_per_pack=200,
            packs_per_step=2,
        )
        return replace(config, **{"sample_every": 0, **more})

    return make


@pytest.fixture(scope="module")
def caches(mixed, tmp_path_factory) -> Callable[[str], Path]:
    """caches(precision): the cache of those pictures."""
    folder = tmp_path_factory.mktemp("caches")

    def of(precision: str) -> Path:
        config = mixed(folder / "none", precision)
        make_cache(folder / precision, config.model, config.data, device=torch.device("cpu"), records_per_shard=7)
        return folder / precision  # made once: the second time, every shard is there

    return of


def forbidden(*args: object, **more: object) -> None:
    raise AssertionError("a run from a cache needs this")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_are_those_of_the_pictures_bit_for_bit(precision, mixed, caches, tmp_path, monkeypatch, capsys) -> None:
    cache = caches(precision)
    running.train(mixed(tmp_path / "pixels", precision, steps=5))
    said = capsys.readouterr().out.splitlines()[-1]
    for needless in (
        "reca_fast.data.samples.decode",
        "reca_fast.data.samples.picture_size",
        "reca_fast.data.images.decode",
        "reca_fast.models.bagel.model.BagelModel.fill_encoders",
        "reca_fast.models.bagel.encoders.read_kl_vae",
    ):
        monkeypatch.setattr(needless, forbidden)
    config = mixed(tmp_path / "cached", precision, cache, steps=5)
    config.data.source = ""
    running.train(config)
    pixels, cached = course(tmp_path / "pixels"), course(tmp_path / "cached")
    assert cached == pixels and len(pixels) == 4
    assert capsys.readouterr().out.splitlines()[-1].partition(" See ")[0] == said.partition(" See ")[0]
    assert "1 x not a readable picture (e.g. 09.png)" in said and " x truncated or damaged" in said


def test_a_run_goes_on_with_a_cache_and_without_one(mixed, caches, tmp_path) -> None:
    cache = caches("fp32")
    running.train(mixed(tmp_path / "whole"))
    for out, first, then in (("a", None, cache), ("b", cache, None)):
        running.train(mixed(tmp_path / out, cache=first))
        for step in (2, 3):
            shutil.rmtree(tmp_path / out / "checkpoints" / f"step-000000{step}")
        running.train(mixed(tmp_path / out, cache=then))
        assert course(tmp_path / out) == course(tmp_path / "whole")


def test_grids_are_drawn_with_encoders_that_are_loaded_for_them(mixed, caches, tmp_path) -> None:
    with pytest.raises(UserError, match=r"sample_every .* set --data\.source as well, or --sample_every 0"):
        config = mixed(tmp_path / "run", cache=caches("fp32"), sample_every=2)
        config.data.source = ""
        running.train(config)
    running.train(mixed(tmp_path / "run", cache=caches("fp32"), sample_every=2, sample_count=1))
    running.train(mixed(tmp_path / "pixels", sample_every=2, sample_count=1))
    grids = [(tmp_path / run / "samples" / "step-0000002.png").read_bytes() for run in ("run", "pixels")]
    assert grids[0] == grids[1]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"precision": "bf16"}, r"model\.precision=fp32, now it is bf16"),
        ({"blur_sigma": 2.0}, r"data\.blur_sigma=1\.0, now it is 2\.0"),
        ({"resize": "exact"}, r"data\.resize=fast, now it is exact"),
        ({"orientation": "ignore"}, r"data\.orientation=apply, now it is ignore"),
        ({"condition_resize": ResizeConfig(42, 28, 14)}, r"data\.condition_resize\.max_size=56, now it is 42"),
        ({"target_resize": ResizeConfig(32, 32, 8)}, r"data\.target_resize\.min_size=16, now it is 32"),
    ],
)
def test_a_cache_of_other_settings_is_refused_by_name(setting, says, mixed, caches, tmp_path) -> None:
    config = mixed(tmp_path / "run", setting.get("precision", "fp32"), caches("fp32"))
    for name, value in setting.items():
        setattr(config.model if name == "precision" else config.data, name, value)
    with pytest.raises(UserError, match=rf"was made with {says}; set it back, or make another cache"):
        running.train(config)


def test_a_cache_holds_the_crops_of_the_first_epoch(mixed, tmp_path, capsys) -> None:
    squares = {
        "condition_resize": ResizeConfig(56, 56, 14, fit="crop"),
        "target_resize": ResizeConfig(32, 32, 8, fit="crop"),
    }

    def run(name: str, cache: Path | None = None, **more: object) -> RunConfig:
        config = mixed(tmp_path / name, cache=cache, steps=2)
        config.data = replace(config.data, lookahead=1, **squares, **more)
        return config

    pixels = run("pixels")
    make_cache(tmp_path / "cache", pixels.model, pixels.data, device=torch.device("cpu"))
    assert "every epoch of training from it sees the same crops" in capsys.readouterr().out
    running.train(pixels)  # both steps are in the first epoch
    running.train(run("cached", tmp_path / "cache"))
    assert course(tmp_path / "cached") == course(tmp_path / "pixels")
    with pytest.raises(UserError, match=r"was made with data\.seed=42, now it is 43"):
        running.train(run("other", tmp_path / "cache", seed=43))


def test_a_cache_of_another_model_or_of_other_pictures_is_refused(
    mixed, caches, tiny_folder, pictures, tmp_path
) -> None:
    config = mixed(tmp_path / "run", cache=caches("fp32"))
    config.data.source = str(pictures)
    with pytest.raises(UserError, match=r"was made from another data\.source: it differs in .*pictures"):
        running.train(config)
    config.data.source, config.model.path = "", str(tiny_folder)
    with pytest.raises(UserError, match=r"was made from another model\.path: it differs in vision tower;"):
        running.train(config)


def test_the_command_makes_a_cache_and_verifies_it(mixed, reca_fast, tmp_path) -> None:
    config = mixed(tmp_path / "none")
    options = f"--config tiny-bagel --model.path {config.model.path} --data.source {config.data.source} --device cpu"
    options += " --data.condition_resize.max_size 28 --data.condition_resize.min_size 28"
    assert "out is empty" in reca_fast("cache", *options.split()).sentence
    said = reca_fast("cache", *options.split(), "--out", tmp_path / "cache")
    assert said.code == 0 and "24 records in 1 shards" in said.out and "images/s, ETA 0:00:00" in said.out
    assert "4 records unusable" in reca_fast("verify", tmp_path / "cache").out
    assert len(CacheSource(tmp_path / "cache")) == 24
    read = reca_fast("cache", *options.split(), "--out", tmp_path / "cache", "--data.cache", tmp_path / "cache")
    assert "the cache that is made here goes to --out" in read.sentence


def test_stages_share_a_cache(mixed, caches, tmp_path) -> None:
    """The second stage begins from a trained checkpoint with the same encoders, and asks for no captions by name."""
    cache = caches("fp32")
    for name, source in (("pixels", None), ("cached", cache)):
        first = mixed(tmp_path / name, cache=source, steps=2)
        second = mixed(tmp_path / name, cache=source, steps=2)
        second.data.tasks, second.loss.t2i, second.data.caption_name = TaskWeights(reca=1, t2i=0), 0.0, "short"
        train_stages([("1-first", first), ("2-second", second)], export_to)
    for stage in ("1-first", "2-second"):
        assert course(tmp_path / "cached" / stage) == course(tmp_path / "pixels" / stage)
    asks = mixed(tmp_path / "asks", cache=cache)
    asks.data.caption_name = "short"
    with pytest.raises(UserError, match=r"was made with data\.caption_name=, now it is short"):
        running.train(asks)
