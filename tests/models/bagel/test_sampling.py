"""Drawing: a cached prefix is worth the whole sequence, guidance is the authors', batches do not mix, seeds repeat."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from reca_fast.config import DataConfig, ModelConfig, SamplingConfig
from reca_fast.errors import UserError
from reca_fast.evaluation.reconstruction import reconstruct
from reca_fast.memory import fill_model
from reca_fast.models.bagel import BagelModel
from reca_fast.models.bagel import sampling as rule
from reca_fast.models.bagel.collate import Prefix
from reca_fast.models.bagel.names import NETWORK_NAMES
from reca_fast.models.bagel.sampling import BagelSampling, sample_latents, time_grid
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import RECA, Sample, Text

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bagel(tiny_folder: Path) -> BagelModel:
    """The tiny model with every weight random: a fresh one predicts a velocity of zero."""
    model = BagelModel.open(ModelConfig(path=str(tiny_folder), precision="fp32"))
    fill_model(model, torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if ".gen." in name or name.startswith("llm2vae"):
                parameter.copy_(torch.randn(parameter.shape, generator=draw) / max(parameter.shape[-1], 16) ** 0.5)
                parameter.add_("norm" in name)
    return model


@pytest.fixture
def draw(bagel) -> Callable[..., list[Tensor]]:
    """draw(conditions, shapes, guidance=1.0, steps=2, ...): latents [rows * columns, C] of each picture."""

    def sample(conditions, shapes, guidance=1.0, steps=2, seeds=None, together=1, **options) -> list[Tensor]:
        sampling = BagelSampling(steps=steps, guidance=guidance, **options)
        seeds = range(len(shapes)) if seeds is None else seeds
        asked = bagel.module, bagel.tokenizer, bagel.encode, conditions, shapes, sampling, seeds
        return sample_latents(*asked, together=together)

    return sample


def prompts(bagel: BagelModel, *texts: str) -> list[Sample]:
    """Conditions that are a text alone."""
    return [Sample(text, (), None, None, Text(tuple(bagel.tokenize(text)))) for text in texts]


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


CONDITIONS: dict[str, Prefix] = {
    "picture and prompt": (picture(42, 28), (5, 9, 2)),
    "picture": (picture(28, 28), None),
    "prompt": (None, (5, 9, 2, 7)),
    "nothing": (None, None),
}

SHAPES = [(2, 3), (3, 3), (4, 1), (2, 2)]


def noise_of(shapes: list[tuple[int, int]], channels: int, seed: int = 0) -> Tensor:
    """The noise that pictures of these shapes start from, each from a seed of its own."""
    seeds = [torch.Generator().manual_seed(seed + number) for number in range(len(shapes))]
    return torch.cat([torch.randn(r * c, channels, generator=g) for (r, c), g in zip(shapes, seeds, strict=True)])


def velocities(draw, monkeypatch, t: float, conditions, shapes, **options) -> list[Tensor]:
    """The velocity at time t alone: one Euler step from t to 0 moves x by t * v."""
    monkeypatch.setattr(rule, "time_grid", lambda steps, shift: torch.tensor([t, 0.0]))
    ends = draw(conditions, shapes, **options)
    starts = noise_of(shapes, ends[0].shape[1]).split([len(end) for end in ends])
    return [(start - end) / t for start, end in zip(starts, ends, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("t", [1.0, 0.4])
def test_cached_prefix_is_worth_the_whole_sequence(t, bagel, draw, monkeypatch) -> None:
    """Prefix once, then the target against its keys, equals what training computes: everything in one sequence."""
    conditions = list(CONDITIONS.values())
    got = torch.cat(velocities(draw, monkeypatch, t, conditions, SHAPES))
    stride = bagel.config.latent_stride
    samples = [
        Sample(
            str(number), (RECA,), image, picture(rows * stride, columns * stride), None if ids is None else Text(ids)
        )
        for number, ((image, ids), (rows, columns)) in enumerate(zip(conditions, SHAPES, strict=True))
    ]
    batch = bagel.encode(bagel.inputs(DataConfig()).collate(samples, draw_of_pack(0, 0, 0)))
    want = bagel.module(batch, noise_of(SHAPES, got.shape[1]), torch.full((len(SHAPES),), t)).velocity
    assert want.abs().mean() > 0.1
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_matters(name, draw) -> None:
    """Each kind draws finite pictures, different from those of the empty condition, and none is like another."""
    (ours,), (empty,) = draw([CONDITIONS[name]], [(3, 3)]), draw([(None, None)], [(3, 3)])
    assert ours.shape == (9, empty.shape[1]) and ours.isfinite().all()
    assert torch.equal(ours, empty) == (name == "nothing")


SCALES = {"guidance": 3.0, "image_guidance": 2.0, "guidance_interval": (0.5, 1.0)}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"guidance": 3.0}, SCALES], ids=["plain", "guided", "two scales, interval"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_picture_depends_on_its_own_condition_shape_and_seed_alone(precision, options, draw) -> None:
    """To the last bit: neither the pictures drawn beside it nor their order, lengths and sizes matter."""
    conditions, seeds = list(CONDITIONS.values()), [7, 1, 2**40, 3]

    def pictures(*numbers: int) -> dict[int, Tensor]:
        chosen = ([values[n] for n in numbers] for values in (conditions, SHAPES, seeds))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            given, shapes, own_seeds = chosen
            return dict(zip(numbers, draw(given, shapes, seeds=own_seeds, steps=3, **options), strict=True))

    together = pictures(0, 1, 2, 3)
    assert [len(x) for x in together.values()] == [rows * columns for rows, columns in SHAPES]
    for others in ((0,), (1,), (2,), (3,), (3, 2, 1, 0), (1, 3), (2, 0, 1)):
        for number, picture in pictures(*others).items():
            assert torch.equal(picture, together[number]), (number, others)


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


@pytest.mark.parametrize("renorm", ["global", "channel"])
def test_together_every_picture_has_its_own_branches_and_its_own_length(renorm, draw) -> None:
    conditions, shapes = [*CONDITIONS.values()] * 3, [(2, 3), (3, 3)] * 6
    options = {**SCALES, "steps": 4, "guidance_renorm": renorm}
    alone, beside = (draw(conditions, shapes, together=together, **options) for together in (1, 3))
    for one, other in zip(alone, beside, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_guidance_of_one_skips_the_unconditional_pass(bagel, draw, monkeypatch) -> None:
    rows = calls(bagel, monkeypatch)
    draw([CONDITIONS["prompt"]], [(2, 3)], guidance=1.0)
    draw([CONDITIONS["prompt"]], [(2, 3)], guidance=2.0)
    assert rows == [6, 6, 12, 12]


def test_a_third_pass_only_where_there_is_a_picture_to_leave_out(bagel, draw, monkeypatch) -> None:
    rows = calls(bagel, monkeypatch)
    draw([CONDITIONS["picture and prompt"]], [(2, 3)], steps=1, guidance=2.0, image_guidance=1.5)
    draw([CONDITIONS["prompt"]], [(2, 3)], steps=1, guidance=2.0, image_guidance=1.5)
    assert rows == [18, 12]


@pytest.mark.parametrize(
    ("interval", "passes"),
    [
        ((0, 1), [2] * 4),
        ((0.25, 0.75), [1, 2, 2, 1]),
        ((0.5, 1), [2, 2, 1, 1]),
        ((0.3, 0.4), [1] * 4),
        ((0, 0), [1] * 4),
    ],
    ids=str,
)
def test_outside_the_interval_nothing_unconditional_is_computed(interval, passes, bagel, draw, monkeypatch) -> None:
    """Times 1, 0.75, 0.5, 0.25; the interval holds its upper end and not its lower one."""
    rows = calls(bagel, monkeypatch)
    options = {"steps": 4, "timestep_shift": 1.0, "guidance_interval": interval}
    draw([CONDITIONS["prompt"]], [(1, 1)], guidance=2.0, **options)
    assert rows == passes


def test_interval_decides_which_velocity_is_followed(draw, monkeypatch) -> None:
    conditions, shapes = [CONDITIONS["prompt"]], [(2, 2)]
    plain, guided = (
        velocities(draw, monkeypatch, 0.4, conditions, shapes, guidance=scale, guidance_interval=(0, 1))[0]
        for scale in (1.0, 4.0)
    )
    for interval, wanted in (((0.4, 1), plain), ((0.39, 0.4), guided), ((0, 0.39), plain)):
        (got,) = velocities(draw, monkeypatch, 0.4, conditions, shapes, guidance=4.0, guidance_interval=interval)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, guided, atol=1e-2)


def oracle(v: np.ndarray, v_text: np.ndarray, v_image: np.ndarray, scales, kind: str, least: float) -> np.ndarray:
    """The authors' formula in words: walk from the promptless velocity through the conditional one, `scales[0]` times
    as far; then the same from the pictureless velocity, `scales[1]` times; and where the result became longer than the
    conditional velocity, shorten it to that length, but to no less than the fraction `least`. Longer is meant of the
    picture (global), of each token (channel), of each token before the second walk (text_channel).
    """

    def shorten(long: np.ndarray, short: np.ndarray) -> np.ndarray:
        factor = np.linalg.norm(short) / (np.linalg.norm(long) + 1e-8)
        return long * min(1.0, max(least, factor))

    def per_token(long: np.ndarray) -> np.ndarray:
        return np.stack([shorten(token, reference) for token, reference in zip(long, v, strict=True)])

    walked = (1 - scales[0]) * v_text + scales[0] * v
    if kind == "text_channel":
        walked = per_token(walked)
    walked = (1 - scales[1]) * v_image + scales[1] * walked
    return {"global": shorten(walked, v), "channel": per_token(walked), "text_channel": walked}[kind]


@pytest.mark.parametrize("least", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("kind", ["global", "channel", "text_channel"])
@pytest.mark.parametrize("scales", [(1.5, 1.0), (4.0, 1.0), (4.0, 2.0), (20.0, 1.5)], ids=str)
def test_the_guided_velocity_is_the_authors(scales, kind, least, draw, monkeypatch) -> None:
    conditions, shapes = list(CONDITIONS.values()), SHAPES
    promptless = [(picture, None) for picture, _ in conditions]
    pictureless = [(None, ids) for _, ids in conditions]
    v, text, image = (velocities(draw, monkeypatch, 0.7, c, shapes) for c in (conditions, promptless, pictureless))
    options = {"guidance": scales[0], "image_guidance": scales[1]}
    options |= {"guidance_renorm": kind, "guidance_renorm_min": least}
    guided = velocities(draw, monkeypatch, 0.7, conditions, shapes, **options)
    for got, full, promptless_one, pictureless_one in zip(guided, v, text, image, strict=True):
        wanted = oracle(full.numpy(), promptless_one.numpy(), pictureless_one.numpy(), scales, kind, least)
        torch.testing.assert_close(got, torch.from_numpy(wanted), rtol=1e-4, atol=2e-4)


IMPOSSIBLE = {
    "steps": (0, "at least 1"),
    "timestep_shift": (0.0, "at most 1,000 and above 0"),
    "guidance": (0.5, "at least 1"),
    "image_guidance": (math.nan, "at least 1"),
    "guidance_interval": ((0.4, 1.2), "at least 0 and at most 1"),
    "guidance_renorm_min": (-0.1, "at least 0"),
    "seed": (-1, "at least 0"),
}


@pytest.mark.parametrize("option", IMPOSSIBLE)
def test_impossible_settings_are_refused_by_name(option, bagel) -> None:
    value, range_ = IMPOSSIBLE[option]
    with pytest.raises(UserError, match=rf"sampling\.{option}=.*: it must be {range_}"):
        bagel.sample([], [], SamplingConfig(**{option: value}), [])


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"guidance": 2.0, "guidance_interval": (0.9, 0.4)}, "the second time must be the later one"),
        ({"guidance": 1.0, "image_guidance": 2.0}, r"set --sampling\.guidance above 1 as well"),
        ({"temperature": 0.5}, r"sampling\.temperature is set, and this model draws without it; leave it out"),
    ],
)
def test_settings_that_exclude_each_other_or_the_model(options, advice, bagel) -> None:
    with pytest.raises(UserError, match=advice):
        bagel.sample([], [], SamplingConfig(**options), [])


# The time grid


def test_the_time_grid_is_shifted_towards_noise() -> None:
    """49 steps between 50 times, shifted by 3 towards noise: half of them are spent above t = 0.75."""
    grid = time_grid(49, 3.0)
    assert (grid[0].item(), grid[-1].item(), len(grid)) == (1.0, 0.0, 50)
    assert (grid.diff() < 0).all()
    torch.testing.assert_close(time_grid(50, 3.0)[25], torch.tensor(0.75))
    torch.testing.assert_close(time_grid(4, 1.0), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))


def test_steps_are_evaluations_of_the_model(bagel, draw, monkeypatch) -> None:
    rows = calls(bagel, monkeypatch)
    draw([(None, None)], [(1, 2)], steps=7, timestep_shift=3.0)
    assert rows == [2] * 7


def test_one_step_goes_all_the_way(draw, monkeypatch) -> None:
    """From noise to the data that the first velocity points at."""
    (velocity,), (end,) = (
        velocities(draw, monkeypatch, 1.0, [(None, None)], [(2, 2)]),
        draw([(None, None)], [(2, 2)], steps=1),
    )
    torch.testing.assert_close(end, noise_of([(2, 2)], end.shape[1]) - velocity)


def test_euler_steps_reach_the_end_of_a_straight_path(bagel, draw, monkeypatch) -> None:
    """With the velocity of a straight path, noise - data, any grid ends at the data."""
    data = torch.full((4, bagel.config.patch_latent_dim), 0.25)
    start = noise_of([(2, 2)], bagel.config.patch_latent_dim)
    monkeypatch.setattr(rule, "_velocity", lambda model, target, x, t: start - data)
    (end,) = draw([(None, None)], [(2, 2)], steps=6)
    torch.testing.assert_close(end, data)


# Pictures


@pytest.fixture(scope="module")
def amplifying(bagel: BagelModel, tiny_folder: Path, tmp_path_factory) -> Path:
    """A checkpoint folder that makes visible differences out of a last bit, as trained weights do: 176 grey levels
    after 12 steps in fp32, where the generation expert's matrices are ten times as large.
    """
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("amplifying") / "checkpoint"))
    matrices = ("_proj.weight", "_proj.bias", "vae2llm.weight", "llm2vae.weight")
    weights = load_file(folder / "ema.safetensors")  # what nothing reads is in the file alone
    for name, x in bagel.module.named_parameters():
        factor = 10 if name.endswith(matrices) and ".und." not in name else 1
        weights[NETWORK_NAMES.key(name)] = factor * x.detach()
    save_file(weights, folder / "ema.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batch_changes_no_pixel(precision, amplifying, tmp_path, reca_fast) -> None:
    prompts = json.dumps(["a cat", "a red square", "the sea at night", "x", "two dogs"])
    drawn = {}
    for batch in (1, 4):
        out, size = tmp_path / str(batch), ["--width", 32, "--height", 16]
        options = ["--model.path", amplifying, "--model.precision", precision, "--sampling.steps", 12, "--out", out]
        said = reca_fast("generate", "--prompt", prompts, "--batch", batch, "--device", "cpu", *size, *options)
        assert said.code == 0, said.err
        drawn[batch] = [np.asarray(Image.open(path)) for path in sorted(out.glob("*.png"))]
    assert len(drawn[1]) == 5 and not np.array_equal(drawn[1][0], drawn[1][1])
    assert all(np.array_equal(one, other) for one, other in zip(drawn[1], drawn[4], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_reconstructions_do_not_depend_on_what_is_beside_them(precision, amplifying) -> None:
    model = BagelModel.open(ModelConfig(path=str(amplifying), precision=precision))
    fill_model(model, torch.device("cpu"))
    sizes = [(16, 16), (24, 8), (32, 16)]
    samples = [
        Sample(str(n), (RECA,), picture(28, 28, n), picture(*size, n), Text((3,) * n)) for n, size in enumerate(sizes)
    ]
    sampling = SamplingConfig(steps=12, guidance=4.0)
    together = reconstruct(model, samples, sampling)
    assert torch.equal(reconstruct(model, samples[:1], sampling)[0].drawn, together[0].drawn)
    pair = reconstruct(model, samples[:2], sampling)
    assert all(torch.equal(one.drawn, other.drawn) for one, other in zip(pair, together[:2], strict=True))


def test_pixels_are_cut_to_grey_levels(bagel, monkeypatch) -> None:
    """As the authors do: 0.999 of a level is not the next one."""
    levels = torch.tensor([-5.0, 0.0, 0.6, 1.1, 41.999, 254.9, 255.0, 300.0])
    pixels = (levels / 255 * 2 - 1).double().expand(1, 3, 1, 8)
    monkeypatch.setattr(bagel.encoders.vae, "decode", lambda z: pixels)
    (got,) = bagel.sample(prompts(bagel, "x"), [(8, 8)], SamplingConfig(steps=1), [0])
    assert got[0, :, 0].tolist() == [0, 0, 0, 1, 41, 254, 255, 255]


def test_same_seed_same_picture(bagel) -> None:
    def pictures(seed: int) -> list[Tensor]:
        conditions = prompts(bagel, "a red square", "a cat")
        return bagel.sample(conditions, [(32, 16)] * 2, SamplingConfig(steps=4, guidance=2.0), [seed, seed + 1])

    first = pictures(1)
    assert [(p.shape, p.dtype) for p in first] == [((16, 32, 3), torch.uint8)] * 2
    assert all(torch.equal(a, b) for a, b in zip(first, pictures(1), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, pictures(2), strict=True))
    assert not torch.equal(*first)


def test_reconstructions_have_the_sizes_of_their_targets(bagel) -> None:
    samples = [
        Sample("a", (RECA,), picture(28, 42), picture(16, 24), Text((3, 4))),
        Sample("b", (RECA,), picture(28, 28), picture(32, 8), None),
    ]
    got = [r.drawn for r in reconstruct(bagel, samples, SamplingConfig(steps=3))]
    assert [tuple(p.shape) for p in got] == [(16, 24, 3), (32, 8, 3)]


@pytest.mark.parametrize("size", [(60, 64), (64, 0), (-8, 64), (64, 136)], ids=str)
def test_impossible_sizes_are_refused_in_one_sentence(size, bagel) -> None:
    with pytest.raises(
        UserError, match=f"A picture of {size[0]} x {size[1]} cannot be drawn: .* multiples of 8 and at most 128"
    ):
        bagel.sample(prompts(bagel, "a cat"), [size], SamplingConfig(steps=1), [0])
