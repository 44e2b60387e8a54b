"""Rows that nothing sees: the same losses and gradients from streams whose sizes are rounded up."""

import pytest
import torch
from torch import Tensor

from reca_fast.config import DataConfig, ModelConfig
from reca_fast.memory import fill_model
from reca_fast.models.bagel import BagelModel
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import I2T, RECA, Sample, Text

pytestmark = pytest.mark.usefixtures("one_thread")


def batch_of(model: BagelModel, number: int, round_rows: int, joint: bool):
    """A pack of one to three samples; all sizes follow from its number."""
    samples = []
    for i in range(1 + number % 3):
        task = I2T if joint and i == 1 else RECA
        target = None if task == I2T else torch.full((16 * (3 + number % 2), 48, 3), 200, dtype=torch.uint8)
        text = Text(tuple(range(5, 8 + number + i)), ((0, 3 + number + i),) if task == I2T else ())
        samples.append(Sample(f"{i}", (task,), torch.full((28, 56, 3), 90, dtype=torch.uint8), target, text))
    inputs = model.inputs(DataConfig(round_rows=round_rows))
    return model.encode(inputs.collate(samples, draw_of_pack(1, 0, number)))


def learned(model: BagelModel, batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses, and the gradient of every trained parameter."""
    model.module.zero_grad(set_to_none=True)
    sums = model.loss_sums(batch)
    torch.stack(list(sums.values())).sum().backward()
    return sums, {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module", params=[False, True], ids=["reca", "joint"])
def model(request, tiny_folder) -> BagelModel:
    model = BagelModel.open(ModelConfig(str(tiny_folder), precision="fp32", freeze_und=not request.param))
    fill_model(model, torch.device("cpu"))
    torch.nn.init.normal_(model.module.get_parameter("llm2vae.weight"), std=0.1)
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_losses_and_gradients_are_those_without_padding(model, attention) -> None:
    joint = not model.options.freeze_und
    model.module.attention = attention
    plain, padded = (batch_of(model, 2, rows, joint) for rows in (0, 32))
    assert padded.plan.und_padding > 0 and padded.plan.gen_padding > 0
    (losses, gradients), (losses_then, gradients_then) = learned(model, plain), learned(model, padded)
    assert losses_then.keys() == losses.keys() and gradients_then.keys() == gradients.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(losses_then[name], loss, rtol=1e-6, atol=0)
    for name, gradient in gradients.items():
        error = (gradients_then[name] - gradient).norm()
        assert error <= 1e-5 * gradient.norm(), name


def test_the_layers_meet_one_size(model) -> None:
    joint = not model.options.freeze_und
    met: dict[int, set[tuple[int, int]]] = {0: set(), 128: set()}
    for rows, sizes in met.items():
        hook = model.blocks()[0].register_forward_pre_hook(
            lambda block, args, sizes=sizes: sizes.add((len(args[0].hidden_states), len(args[1].hidden_states)))
        )
        for number in range(2):
            with torch.no_grad():
                model.loss_sums(batch_of(model, number, rows, joint))
        hook.remove()
    assert len(met[0]) == 2 and met[128] == {(128, 128)}


def test_counts_and_tokens_do_not_know_of_it(model) -> None:
    plain, padded = (batch_of(model, 1, rows, False) for rows in (0, 64))
    assert plain.counts == padded.counts and plain.num_tokens == padded.num_tokens
    assert model.flops(plain) == model.flops(padded)
    assert batch_of(model, 0, 1, False).plan.und_padding == 0


def test_captions_alone_stay_as_they_are(model) -> None:
    samples = [Sample("0", (I2T,), torch.zeros(28, 56, 3, dtype=torch.uint8), None, Text((5, 6, 7), ((0, 3),)))]
    plan = model.inputs(DataConfig(round_rows=64)).collate(samples, draw_of_pack(1, 0, 0)).plan
    assert (plan.und_padding, plan.gen_padding) == (0, 0)
