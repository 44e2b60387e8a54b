"""Drawing: a cached prefix is worth the whole sequence, guidance is bounded, batches do not mix, seeds repeat."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reca_fast.config import ModelConfig, SamplingConfig
from reca_fast.errors import UserError
from reca_fast.flow import RECA, Sample
from reca_fast.models.bagel import BagelAdapter
from reca_fast.models.bagel import sampling as rule
from reca_fast.models.bagel.sampling import Condition, sample_latents, time_grid

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bagel(tiny_folder: Path) -> BagelAdapter:
    """The tiny model with every weight random: a fresh one predicts a velocity of zero."""
    adapter = BagelAdapter(ModelConfig(path=str(tiny_folder), precision="fp32"))
    adapter.load(torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapter.module.named_parameters():
            if ".gen." in name or name.startswith("llm2vae"):
                parameter.copy_(torch.randn(parameter.shape, generator=draw) / max(parameter.shape[-1], 16) ** 0.5)
                parameter.add_("norm" in name)
    return adapter


@pytest.fixture
def draw(bagel) -> Callable[..., list[Tensor]]:
    """draw(conditions, shapes, guidance=1.0, steps=3, ...): latents [rows * columns, C] of each picture."""

    def sample(conditions, shapes, guidance: float = 1.0, steps: int = 3, **options) -> list[Tensor]:
        options = SamplingConfig(steps=steps, guidance=guidance, **options)
        return sample_latents(bagel.module, bagel.tokenizer, conditions, shapes, options)

    return sample


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


CONDITIONS: dict[str, Condition] = {
    "picture and prompt": (picture(42, 28), (5, 9, 2)),
    "picture": (picture(28, 28), None),
    "prompt": (None, (5, 9, 2, 7)),
    "nothing": (None, None),
}
SHAPES = [(2, 3), (3, 3), (4, 1), (2, 2)]


def noise_of(shapes: list[tuple[int, int]], channels: int, seed: int = 0) -> Tensor:
    """The noise that pictures of these shapes start from."""
    return torch.randn(sum(r * c for r, c in shapes), channels, generator=torch.Generator().manual_seed(seed))


def velocities(draw, monkeypatch, t: float, conditions, shapes, guidance: float) -> list[Tensor]:
    """The velocity at time t alone: one Euler step from t to 0 moves x by t * v."""
    monkeypatch.setattr(rule, "time_grid", lambda steps, shift: torch.tensor([t, 0.0]))
    ends = draw(conditions, shapes, guidance)
    starts = noise_of(shapes, ends[0].shape[1]).split([len(end) for end in ends])
    return [(start - end) / t for start, end in zip(starts, ends, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("t", [1.0, 0.4])
def test_cached_prefix_is_worth_the_whole_sequence(t, bagel, draw, monkeypatch) -> None:
    """Prefix once, then the target against its keys, equals what training computes: everything in one sequence."""
    conditions = list(CONDITIONS.values())
    got = torch.cat(velocities(draw, monkeypatch, t, conditions, SHAPES, guidance=1.0))
    stride = bagel.config.latent_stride
    samples = [
        Sample(str(number), RECA, image, picture(rows * stride, columns * stride), ids)
        for number, ((image, ids), (rows, columns)) in enumerate(zip(conditions, SHAPES, strict=True))
    ]
    batch = bagel.collate(samples)
    want = bagel.module(batch, noise_of(SHAPES, got.shape[1]), torch.full((len(SHAPES),), t)).velocity
    assert want.abs().mean() > 0.1
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_matters(name, draw) -> None:
    """Each kind draws finite pictures, different from those of the empty condition, and none is like another."""
    (ours,), (empty,) = draw([CONDITIONS[name]], [(3, 3)]), draw([(None, None)], [(3, 3)])
    assert ours.shape == (9, empty.shape[1]) and ours.isfinite().all()
    assert torch.equal(ours, empty) == (name == "nothing")


def test_batch_of_different_sizes_equals_one_by_one(draw) -> None:
    """Turned so that each picture comes first once: the first one's noise does not depend on the rest."""
    conditions = list(CONDITIONS.values())
    for turn in range(len(SHAPES)):
        turned, shapes = conditions[turn:] + conditions[:turn], SHAPES[turn:] + SHAPES[:turn]
        together, (alone,) = draw(turned, shapes, guidance=3.0), draw(turned[:1], shapes[:1], guidance=3.0)
        assert [len(x) for x in together] == [rows * columns for rows, columns in shapes]
        torch.testing.assert_close(together[0], alone, rtol=1e-4, atol=1e-5)


# Classifier-free guidance


def calls(bagel, monkeypatch) -> list[int]:
    """Rows of the generation expert in every pass of the decoder from now on."""
    rows, decode = [], bagel.module.decode

    def counted(und, gen, *args, **kwargs):
        if gen is not None:
            rows.append(len(gen))
        return decode(und, gen, *args, **kwargs)

    monkeypatch.setattr(bagel.module, "decode", counted)
    return rows


def test_guidance_of_one_skips_the_unconditional_pass(bagel, draw, monkeypatch) -> None:
    rows = calls(bagel, monkeypatch)
    draw([CONDITIONS["prompt"]], [(2, 3)], guidance=1.0)
    draw([CONDITIONS["prompt"]], [(2, 3)], guidance=2.0)
    assert rows == [6, 6, 12, 12]


@pytest.mark.parametrize("scale", [0.5, 1.5, 4.0, 20.0])
def test_guided_velocity(scale, draw, monkeypatch) -> None:
    """v_u + s (v - v_u), scaled down over the whole picture where it is longer than the conditional v."""
    conditions = [CONDITIONS["picture and prompt"], CONDITIONS["prompt"], CONDITIONS["nothing"]]
    shapes = SHAPES[:3]
    plain = velocities(draw, monkeypatch, 0.7, conditions, shapes, guidance=1.0)
    empty = velocities(draw, monkeypatch, 0.7, [(None, None)] * 3, shapes, guidance=1.0)
    guided = velocities(draw, monkeypatch, 0.7, conditions, shapes, guidance=scale)
    for g, v, u in zip(guided, plain, empty, strict=True):
        assert g.norm() <= v.norm() * (1 + 1e-5)
        straight = u + scale * (v - u)
        torch.testing.assert_close(g, straight * min(1.0, float(v.norm() / straight.norm())), rtol=1e-4, atol=1e-4)


# The time grid


def test_time_grid() -> None:
    """50 points from noise to data, shifted by 3 towards noise: half of the steps are spent above t = 0.75."""
    grid = time_grid(50, 3.0)
    assert (grid[0], grid[-1], len(grid)) == (1.0, 0.0, 50)
    assert (grid.diff() < 0).all()
    torch.testing.assert_close(time_grid(51, 3.0)[25], torch.tensor(0.75))
    torch.testing.assert_close(time_grid(5, 1.0), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))


def test_fifty_points_are_49_evaluations(bagel, draw, monkeypatch) -> None:
    rows = calls(bagel, monkeypatch)
    draw([(None, None)], [(1, 2)], steps=50, timestep_shift=3.0)
    assert rows == [2] * 49


def test_euler_steps_reach_the_end_of_a_straight_path(bagel, draw, monkeypatch) -> None:
    """With the velocity of a straight path, noise - data, any grid ends at the data."""
    data = torch.full((4, bagel.config.patch_latent_dim), 0.25)
    start = noise_of([(2, 2)], bagel.config.patch_latent_dim)
    monkeypatch.setattr(rule, "_velocity", lambda model, batch, x, t, cache: start - data)
    (end,) = draw([(None, None)], [(2, 2)], steps=7)
    torch.testing.assert_close(end, data)


# Pictures


def test_same_seed_same_picture(bagel) -> None:
    def pictures(seed: int) -> list[Tensor]:
        return bagel.generate(["a red square", "a cat"], (32, 16), SamplingConfig(steps=4, guidance=2.0, seed=seed))

    first = pictures(1)
    assert [(p.shape, p.dtype) for p in first] == [((16, 32, 3), torch.uint8)] * 2
    assert all(torch.equal(a, b) for a, b in zip(first, pictures(1), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, pictures(2), strict=True))
    assert not torch.equal(*first)


def test_reconstructions_have_the_sizes_of_their_targets(bagel) -> None:
    samples = [
        Sample("a", RECA, picture(28, 42), picture(16, 24), (3, 4)),
        Sample("b", RECA, picture(28, 28), picture(32, 8), None),
    ]
    got = bagel.reconstruct(samples, SamplingConfig(steps=3))
    assert [tuple(p.shape) for p in got] == [(16, 24, 3), (32, 8, 3)]


@pytest.mark.parametrize("size", [(60, 64), (64, 0), (-8, 64), (64, 136)], ids=str)
def test_impossible_sizes(size, bagel) -> None:
    with pytest.raises(
        UserError, match=f"A picture of {size[0]} x {size[1]} cannot be drawn: .* multiples of 8 and at most 128"
    ):
        bagel.generate(["a cat"], size, SamplingConfig(steps=2))
