"""The real 14B training step, at true shapes, on fake tensors: nothing is allocated, every operation is called."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu_stages.bagel import LAYERS, fill_fake, kept_activations, make_model, pack
from reca_fast.config import LossWeights
from reca_fast.models.bagel.batch import BagelBatch
from reca_fast.models.bagel.config import BAGEL_7B_MOT
from reca_fast.objectives import weighted_loss

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def batch() -> BagelBatch:
    """Two pictures of 1024 x 1024 with prompts of 21 tokens: 4379 tokens each (facts of the public recipe)."""
    return pack(make_model(BAGEL_7B_MOT), pictures=2)


def test_a_picture_has_as_many_tokens_as_in_the_authors_pack(batch):
    assert batch.num_tokens == 2 * 4379
    assert batch.counts == {"reca": 2 * 4096, "t2i": 0, "i2t": 0}


@pytest.mark.parametrize("freeze_und", [True, False])
def test_the_step_runs_and_trains_just_what_it_should(batch, freeze_und):
    model = make_model(BAGEL_7B_MOT, freeze_und=freeze_und)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        fill_fake(model)
        velocities: list[torch.Tensor] = []
        model.module.llm2vae.register_forward_hook(lambda _, args, out: velocities.append(out))
        weighted_loss(model.loss_sums(model.encode(batch)), batch.counts, LossWeights()).backward()

    assert velocities[0].shape == (8192, 64) and velocities[0].dtype == torch.bfloat16
    trained = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    if freeze_und:
        assert sum(p.numel() for p in trained.values()) == 6_539_861_056
        assert all(".gen." in name or "und" not in name for name in trained)


def test_activations_that_one_picture_keeps():
    """19 GB for the backward pass without recomputation (README); with it, the inputs of the layers alone remain."""
    assert kept_activations(LAYERS, pictures=1) == pytest.approx(19e9, rel=0.03)


def test_flops_are_those_counted_from_the_authors_step(batch):
    """Needed arithmetic per picture: 190 TFLOP with a prompt of 40 tokens, within 5 % (no VAE, no recomputation)."""
    assert make_model(BAGEL_7B_MOT).flops(batch) / 2 == pytest.approx(190e12, rel=0.05)


def test_flops_are_those_of_the_step_itself(batch):
    """As torch counts them while the step runs, less the scores that attention's backward pass computes again."""
    model = make_model(BAGEL_7B_MOT)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        fill_fake(model, torch.float32)
        with FlopCounterMode(display=False) as counter:
            weighted_loss(model.loss_sums(model.encode(batch)), batch.counts, LossWeights()).backward()
    counts = counter.get_flop_counts()["Global"]
    again = counts[torch.ops.reca_fast.varlen_attention_cpu_backward] / 5
    needed = counter.get_total_flops() - again
    assert model.flops(batch) == pytest.approx(needed, rel=0.002)
