"""Drawing: the solver is diffusers', guidance is the authors', and a picture behind the prompt needs none."""

from typing import Any

import pytest
import torch
from torch import Tensor

from reca_fast.config import SamplingConfig
from reca_fast.errors import UserError
from reca_fast.models.openuni import encoders
from reca_fast.models.openuni.sampling import OpenUniSampling, draw_latents, noise_levels
from reca_fast.models.parts.lean_import import lean_import
from reca_fast.sample import RECA, T2I, Sample, Text

with lean_import():
    from diffusers import DPMSolverMultistepScheduler

pytestmark = pytest.mark.usefixtures("one_thread")


def theirs(steps: int, shift: float) -> Any:
    """As SANA's scheduler folder describes it."""
    scheduler: Any = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        use_flow_sigmas=True,
        flow_shift=shift,
        prediction_type="flow_prediction",
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize(("steps", "shift"), [(1, 3.0), (2, 3.0), (3, 1.0), (20, 3.0), (7, 5.0)])
def test_steps_are_those_of_diffusers(steps, shift) -> None:
    scheduler, noise = theirs(steps, shift), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    times: list[float] = []

    def velocity(x: Tensor, time: float) -> Tensor:
        times.append(time)
        return (x * 0.7 + time / 1000).sin()

    wanted = noise
    for time in scheduler.timesteps:
        wanted = scheduler.step((wanted * 0.7 + time / 1000).sin(), time, wanted, return_dict=False)[0]
    torch.testing.assert_close(draw_latents(velocity, noise, steps, shift), wanted, rtol=1e-4, atol=1e-4)
    assert times == scheduler.timesteps.tolist()
    torch.testing.assert_close(torch.tensor(noise_levels(steps, shift)), scheduler.sigmas)


def test_the_authors_settings_are_the_defaults() -> None:
    assert SamplingConfig().filled(OpenUniSampling) == OpenUniSampling(20, 3.0, 4.5)
    assert noise_levels(20, 3.0)[:4] == pytest.approx([0.9997, 0.9824, 0.9639, 0.9441], abs=5e-5)


@pytest.fixture(scope="module")
def model(tiny, filled):
    model = filled(tiny)
    torch.nn.init.normal_(model.module.sana.proj_out.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    return model


def picture(seed: int, width: int = 48, height: int = 40) -> Tensor:
    return torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def draw(model, sample: Sample, **settings) -> Tensor:
    return model.sample([sample], [(32, 16)], SamplingConfig(**{"steps": 2, **settings}), [7])[0]


def test_guidance_leads_away_from_any_picture_where_there_is_a_caption_alone(model) -> None:
    text = Text(tuple(model.tokenize("a red cup")))
    caption = Sample("", (T2I,), None, None, text)
    plain, guided = draw(model, caption, guidance=1.0), draw(model, caption, guidance=4.5)
    assert not torch.equal(plain, guided) and torch.equal(draw(model, caption), guided)
    seen = Sample("", (), picture(1), None, text)
    assert torch.equal(draw(model, seen, guidance=1.0), draw(model, seen, guidance=4.5))


def test_a_sample_of_reca_is_drawn_from_its_target(model) -> None:
    """Where condition and target are one picture, a sample holds it as its target."""
    text = Text(tuple(model.tokenize("Describe the image.")))
    one = draw(model, Sample("", (RECA,), None, picture(1), text))
    assert torch.equal(one, draw(model, Sample("", (), picture(1), None, text)))
    assert not torch.equal(one, draw(model, Sample("", (), picture(2), None, text)))
    assert not torch.equal(one, draw(model, Sample("", (T2I,), None, picture(1), text)))


def test_no_more_is_decoded_at_once_than_a_large_picture(model, monkeypatch) -> None:
    monkeypatch.setattr(encoders, "DECODED", 2 * 32 * 16)
    samples, decoded = [Sample("", (), None, None, None)] * 3, []
    draw(model, samples[0], guidance=1.0)  # fills the decoder
    hook = model.encoders.decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(len(inputs[0])))
    model.sample(samples, [(32, 16)] * 3, SamplingConfig(steps=2, together=3), range(3))
    hook.remove()
    assert decoded == [2, 1]


def test_what_is_not_followed_is_refused(model) -> None:
    sample = Sample("", (), None, None, None)
    with pytest.raises(UserError, match="multiples of 8"):
        model.sample([sample], [(20, 16)], SamplingConfig(), [0])
    with pytest.raises(UserError, match="temperature"):
        draw(model, sample, temperature=0.5)
