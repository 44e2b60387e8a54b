"""A small BAGEL's step on fake tensors: bytes and products that can be counted by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from reca_fast.config import DataConfig, LossWeights, MemoryConfig, ModelConfig, ResizeConfig, RunConfig, TaskWeights
from reca_fast.errors import UserError
from reca_fast.hardware import find_gpu
from reca_fast.models.bagel.config import BagelConfig, LLMConfig
from reca_fast.models.bagel.model import BagelModel
from reca_fast.models.bagel.tiny.config import DEMO_VAE
from reca_fast.models.parts.kl_vae import KLVAE
from reca_fast.models.parts.siglip_config import SiglipConfig
from reca_fast.plan import Simulated, estimate, simulate
from reca_fast.plan.alike import alike_once
from reca_fast.plan.simulate import further, make_packs, step_on_fakes
from reca_fast.plan.work import WorkLog
from tests.builders import MARKERS

SMALL = BagelConfig(
    LLMConfig(128, 256, 2, 4, 2, 512), SiglipConfig(64, 96, 2, 4, 980), vae=DEMO_VAE, latent_downsample=4
)
DATA = DataConfig(condition_resize=ResizeConfig(56, 56, 14), target_resize=ResizeConfig(64, 64, 8), tokens_per_pack=250)


def planned(packs: int = 1, gpus: int = 1, **levers: object) -> Simulated:
    config = RunConfig(data=DATA, memory=MemoryConfig(**levers))
    return simulate(config, BagelModel(SMALL, ModelConfig(), MARKERS), packs, gpus)


@pytest.fixture(scope="module")
def plain() -> Simulated:
    return planned()


def sizes() -> tuple[int, int]:
    """How many numbers are trained, and how many are not, encoders left out."""
    parameters = list(BagelModel(SMALL, ModelConfig(), MARKERS).module.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(
        p.numel() for p in parameters if not p.requires_grad
    )


def test_states_are_what_the_weights_make_them(plain: Simulated) -> None:
    trained, frozen = sizes()
    held = plain.device.by_category
    assert held["optimizer"] == pytest.approx(8 * trained, rel=0.02)
    assert held["weights"] > 4 * trained + 2 * frozen  # the encoders' are there as well
    assert plain.host.total == 512 * 128 * 2  # the table of token embeddings, of which few rows are read
    assert plain.images == 2


def test_recomputation_keeps_less_and_multiplies_more(plain: Simulated) -> None:
    again = planned(recompute="blocks")
    assert again.device.total < plain.device.total and again.work.flops > 1.1 * plain.work.flops


def test_what_lives_on_the_host_is_counted_there_and_moves(plain: Simulated) -> None:
    swapped = planned(order="layer", recompute="blocks", swap=1.0, gradients="host")
    assert swapped.host.total > plain.host.total + 4 * sizes()[0] / 2  # most of what is trained is in the blocks
    assert swapped.work.to_device > 0 and swapped.work.to_host > 0
    assert plain.work.to_device == 0


def test_processes_share_states(plain: Simulated) -> None:
    two = planned(gpus=2)
    assert two.device.by_category["optimizer"] == pytest.approx(plain.device.by_category["optimizer"] / 2, rel=0.01)
    assert two.exchanged > 0


def test_from_a_cache_no_encoder_is_there(plain: Simulated) -> None:
    run = RunConfig(data=replace(DATA, cache="a cache that is not there yet"))
    cached = simulate(run, BagelModel(SMALL, ModelConfig(), MARKERS), 1)
    encoders = BagelModel(SMALL, ModelConfig(), MARKERS).encoders
    vit = sum(p.numel() for p in encoders.vit.parameters())
    vae = sum(p.numel() for p in KLVAE(DEMO_VAE, with_decoder=True).parameters())
    held, without = plain.device.by_category, cached.device.by_category
    assert (cached.images, cached.tokens) == (plain.images, plain.tokens)
    assert held["weights"] - without["weights"] == pytest.approx(2 * vit + 4 * vae, rel=0.05)
    assert held["optimizer"] == without["optimizer"]
    assert 0.95 * cached.useful_flops < cached.work.flops < plain.work.flops


@pytest.mark.slow
def test_each_further_pack_adds_what_the_third_added() -> None:
    run = RunConfig(data=DATA)
    two, three, four = (step_on_fakes(run, BagelModel(SMALL, ModelConfig(), MARKERS), packs) for packs in (2, 3, 4))
    reckoned = further(two, three, 1)
    assert (reckoned.images, reckoned.tokens) == (four.images, four.tokens)
    assert reckoned.work.flops == pytest.approx(four.work.flops, rel=1e-6)
    assert reckoned.device.total == pytest.approx(four.device.total, rel=0.01)


@pytest.mark.slow
def test_tasks_are_mixed_as_in_training() -> None:
    """By sample, a pack holds samples of both tasks; by pack, the second of two packs holds those of i2t alone, which
    are shorter and need no VAE.
    """
    tasks = TaskWeights(reca=1.0, i2t=1.0)
    model = BagelModel(SMALL, ModelConfig(freeze_und=False), MARKERS)
    counts = {}
    for mix in ("sample", "pack"):
        config = RunConfig(data=replace(DATA, tasks=tasks, mix=mix, packs_per_step=2))
        counts[mix] = [pack.batch.counts for pack in make_packs(config, model, 2)]
    assert counts["sample"][0] == counts["sample"][1] == {"reca": 64, "t2i": 0, "i2t": 22}
    assert counts["pack"] == [{"reca": 2 * 64, "t2i": 0, "i2t": 0}, {"reca": 0, "t2i": 0, "i2t": 6 * 22}]
    config = replace(config, loss=LossWeights(reca=1.0, i2t=1.0))
    assert simulate(config, model, 6).images == 3 * 2 + 3 * 6  # of which two packs and four are run


def test_a_picture_that_fits_no_pack_is_told() -> None:
    config = RunConfig(data=DataConfig(DATA.source, target_resize=ResizeConfig(64, 64, 8), tokens_per_pack=50))
    with pytest.raises(UserError, match=r"takes \d+ tokens and data.tokens_per_pack is 50; raise it"):
        simulate(config, BagelModel(SMALL, ModelConfig(), MARKERS), 1)


def test_a_faster_gpu_takes_less_time(plain: Simulated) -> None:
    slow, fast = (estimate(plain, RunConfig(), find_gpu(name)) for name in ("rtx3060", "H100"))
    assert 0 < fast.step_seconds <= slow.step_seconds
    assert torch.tensor(list(fast.parts.values())).sum() >= fast.step_seconds


def test_pictures_of_one_size_are_encoded_once_and_counted_each() -> None:
    torch.manual_seed(0)
    inner, calls = nn.Linear(4, 4), []
    encoder = nn.Sequential(inner, nn.ReLU())
    inner.register_forward_pre_hook(lambda *_: calls.append(1))

    def encode() -> None:
        for rows in (3, 3, 5, 3):
            assert encoder(torch.ones(rows, 4)).shape == (rows, 4)

    plain, short = WorkLog(lambda x: False), WorkLog(lambda x: False)
    with plain:
        encode()
    calls.clear()
    with short, alike_once(short, {}):
        encode()
    assert len(calls) == 2 and short.work.flops == plain.work.flops == 2 * 4 * 4 * (3 + 3 + 5 + 3)
